"""The stages that train: in this process, in several, or with other hosts."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from torchyard.core.config.resolve import resolve_once
from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training import device as devices
from torchyard.core.training.events import Emit, StageProgress
from torchyard.core.training.parallel.strategy import DataParallel, Strategy
from torchyard.core.training.prefixes import SharedEpochs
from torchyard.pipelines.worker.checks.config_check import Config
from torchyard.pipelines.worker.stages.preparation import prepare
from torchyard.pipelines.worker.stages.trainer import Answers, train_process

if TYPE_CHECKING:
    from torchyard.core.training.parallel.nodes import Nodes

logger = logging.getLogger(__name__)

TRAINER_SECONDS = 20.0  # how long to wait for one that ends


def train(
    config: Config,
    data: str,
    folder: str,
    emit: Emit,
    weights: str | None = None,
    answers: Answers | None = None,
    shared: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train into `folder`, from its last checkpoint if it has one.

    Args:
        weights: the file with those of a run that `model.weights` names.
        answers: whether to go on after an epoch, from whoever was told of it; in one process.
        shared: what other trainings have in common with this one, as `SharedEpochs.parse` takes
            it; in one process.

    Returns:
        Nothing where a training that is shared was not to go on before this one parts from it.
        weights: the checkpoint to use; fit: how training ended; placement: the devices
        used; balance: what was done about classes of other frequencies; peaks: memory;
        weights_digest: sha256 of the weights; parameters: how many.
    """
    resolved = resolve_once(config, host())
    settings = resolved.config.train
    device = devices.choose_device(resolved.config.device)
    arguments = (config, data, folder, weights)
    with _only_trainer(Path(folder)):
        if settings.parallel == "ddp":
            from torchyard.core.training.parallel.launcher import launch

            nodes = _other_hosts(settings, arguments, device, emit) if settings.nodes > 1 else None
            return launch(train_process, arguments, settings, device, emit, nodes)
        strategy = DataParallel() if settings.parallel == "data_parallel" else Strategy()
        return train_process(arguments, emit, strategy, device, answers, SharedEpochs.parse(shared))


def _other_hosts(
    settings: TrainConfig,
    arguments: tuple[Config, str, str, str | None],
    device: torch.device,
    emit: Emit,
) -> Nodes:
    """Tell the other hosts what is trained, and wait until they can begin."""
    from torchyard.core.training.parallel.nodes import Nodes

    config, data, *_ = arguments
    about = {
        "config": config,
        "data": PreparedDataset.open(Path(data)).digest,
        "device": device.type,
        "versions": _versions(),
    }
    assert settings.rendezvous is not None
    nodes = Nodes.serve(settings.rendezvous, about)
    logger.info("waiting for other hosts: torchyard join %s", settings.rendezvous)
    nodes.wait_for_others(
        settings.nodes,
        settings.join_timeout,
        lambda there, count: emit(StageProgress("hosts", there, count)),
    )
    return nodes


def join(address: str, timeout: float, cache: str, emit: Emit) -> dict[str, Any]:
    """Take part, as another host than the first, in the training that is to be had at an address.

    Args:
        address: HOST:PORT, `train.rendezvous` of the first host.
        timeout: seconds to wait for it.

    Raises:
        UserError: it does not answer, or this host cannot train what it does.
        RunError: the training failed.
    """
    from torchyard.core.training.parallel.launcher import launch
    from torchyard.core.training.parallel.nodes import Nodes

    nodes, about = Nodes.join(address, timeout)
    try:
        if (versions := _versions()) != about["versions"]:
            raise UserError(
                f"the first host has other versions: {_listed(about['versions'])} there, "
                f"{_listed(versions)} here"
            )
        resolved = resolve_once(about["config"], host())
        if changed := [line for line in resolved.changed if not line.startswith("model.weights")]:
            raise UserError(changed)
        data = prepare(about["config"], cache, emit)["folder"]
        digest = PreparedDataset.open(Path(data)).digest
        if digest != about["data"]:
            raise UserError(
                f"dataset: the samples here are not those of the first host: {digest[:16]} here, "
                f"{about['data'][:16]} there"
            )
        device = devices.choose_device(resolved.config.device)
        if device.type != about["device"]:
            raise UserError(f"device: {device.type} here, {about['device']} on the first host")
    except UserError as error:
        nodes.refuse(f"{socket.gethostname()}: {error}")
        raise
    nodes.ready()
    emit(StageProgress("training", 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        arguments = (about["config"], data, folder, None)
        launch(train_process, arguments, resolved.config.train, device, emit, nodes)
    return {}


def _versions() -> dict[str, str]:
    """What decides whether two hosts compute the same."""
    return {"torchyard": version("torchyard"), "torch": str(torch.__version__)}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


@contextmanager
def _only_trainer(folder: Path) -> Iterator[None]:
    """Keep any other process from training in the folder.

    Raises:
        RunError: one trains there, such as a worker process that outlives its killed parent.
    """
    try:
        with FileLock(folder / "training.lock", timeout=TRAINER_SECONDS):
            yield
    except Timeout:
        raise RunError(f"another process trains in {folder}: nothing was changed.") from None
