"""Training again from a claim, and why that gave other weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from torchyard.core.config.files import file_identity
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.formatting import number
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.tracking.mlflow_format import event_metrics
from torchyard.core.tracking.queries.runs import DIGEST
from torchyard.core.training.events import EpochDone, Event
from torchyard.pipelines.display import Display
from torchyard.pipelines.proof.claim import CURVE, PLACEMENT, Claim
from torchyard.pipelines.worker.process import Worker

REASONS = {
    "device": "each kind of processor has kernels of its own, which round otherwise",
    "device_name": "another processor has other instructions, which may round otherwise",
    "threads": "sums are divided among the threads, and added in another order",
    "torch_version": "another version has other kernels, and draws other random numbers",
    "python_version": "another version may order or round otherwise",
    "precision": "the forward pass rounds to other bits",
    "execution": "the step was carried out by other kernels",
    "processes": "each process sums its share of a batch",
    "batch_size": "the size that was found depends on the memory: set train.batch_size",
    "model_device": "part of it was computed elsewhere",
    "data_device": "part of it was computed elsewhere",
    "data set": "it was trained on other samples",
}
FILE = "the file has other contents"
CODE = "the code of the plugin is another"
PACKAGE = "another version of a library may compute otherwise"
# Of all that is installed, what a training may depend on beside the plugins' distributions.
COMPUTING = ("torch", "torchvision", "torchyard", "numpy", "pillow", "scipy", "timm", "simplejpeg")


class Difference(NamedTuple):
    """One thing that is recorded and differs now, and why that may change the weights."""

    what: str
    recorded: str
    now: str
    reason: str


@dataclass(frozen=True)
class Rebuilt:
    """What training again gave, as `Claim` names it.

    Attributes:
        weights, data: the digests.
        environment: where and how it was computed.
        epochs: the training loss after each.
    """

    weights: str
    data: str
    environment: Mapping[str, str]
    epochs: Mapping[str, float]


def rebuild(
    worker: Worker,
    config: dict[str, Any],
    folder: Path,
    shown: Display,
    weights: str | None = None,
) -> Rebuilt:
    """Prepare the data and train, in a folder that nothing else uses.

    Args:
        weights: the file with those of a run that `model.weights` names.

    Raises:
        UserError, RunError: as the stages do.
    """
    epochs: dict[str, float] = {}

    def on_event(event: Event) -> None:
        shown.event(event)
        if isinstance(event, EpochDone):
            metrics, epoch = event_metrics(event)
            epochs[str(epoch)] = metrics[CURVE]

    with shown.stage("prepare", config["dataset"]["name"]):
        done = worker.call("prepare", shown.event, config=config, cache=str(cache_folder()))
    data = done["folder"]
    with shown.stage("train", config["model"]["name"]):
        arguments = {"config": config, "data": data, "folder": str(folder), "weights": weights}
        trained = worker.call("train", on_event, **arguments)
    environment = {key: str(trained["placement"].get(key, "")) for key in PLACEMENT}
    digest = PreparedDataset.open(Path(data)).digest
    return Rebuilt(trained[DIGEST], digest, environment, epochs)


def worker_with(folders: Sequence[Path], shown: Display) -> Worker:
    """A worker process that finds the plugin files of these folders."""
    before = os.environ.get(PLUGIN_FOLDERS)
    os.environ[PLUGIN_FOLDERS] = os.pathsep.join(map(str, folders))
    try:
        return Worker(shown.output)
    finally:
        if before is None:
            del os.environ[PLUGIN_FOLDERS]
        else:
            os.environ[PLUGIN_FOLDERS] = before


def differences(
    claim: Claim, rebuilt: Rebuilt, origins: Mapping[str, tuple[str, str]]
) -> list[Difference]:
    """What is recorded and differs now, each with why that may change the weights.

    Args:
        origins: of plugins, and files that parameters name: recorded and now.
    """
    found = [
        Difference(key, claim.environment[key], now, REASONS[key])
        for key, now in rebuilt.environment.items()
        if claim.environment.get(key, now) != now
    ]
    for what, (before, now) in origins.items():
        if before != now:
            reason = CODE if what.startswith("plugin.") or " " in what else FILE
            found.append(Difference(what, before, now, reason))
    if claim.data and not rebuilt.data.startswith(claim.data):
        shown = rebuilt.data[: len(claim.data)]
        found.append(Difference("data set", claim.data, shown, REASONS["data set"]))
    found += _packages(claim)
    return found


def files_here(config: Mapping[str, Any], claim: Claim) -> dict[str, tuple[str, str]]:
    """The files that parameters name: recorded and now. A data set's are told by its digest.

    Args:
        config: with where they are here.
    """
    found = {}
    for what, before in claim.config.get("plugins", {}).items():
        value: Any = config
        for part in what.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and not what.startswith("dataset."):
            found[what] = (before, file_identity(Path(value).expanduser()))
    return found


def _packages(claim: Claim) -> Iterator[Difference]:
    config = claim.config.get("plugins", {})
    of_plugins = {str(identity).partition("==")[0].lower() for identity in config.values()}
    for name, before in claim.packages.items():
        if name not in of_plugins.union(COMPUTING):
            continue
        try:
            now = version(name)
        except PackageNotFoundError:
            now = "not installed"
        if now != before:
            yield Difference(name, before, now, PACKAGE)


def parting(claim: Claim, rebuilt: Rebuilt) -> str:
    """In which epoch the two trainings part, by their losses; "" where that is not recorded."""
    both = [(epoch, claim.epochs[epoch], now) for epoch, now in rebuilt.epochs.items()
            if epoch in claim.epochs]  # fmt: skip
    if not both:
        return ""
    for epoch, before, now in both:
        if before != now:
            values = f"{number(before)} was recorded, {number(now)} it is now"
            if number(before) == number(now):
                values = f"they differ by {abs(now - before):.1e}"
            return f"the training loss differs first in epoch {epoch}: {values}"
    return f"the training losses of all {len(both)} epochs are the same"


def unexplained(claim: Claim, rebuilt: Rebuilt) -> str:
    """Why weights may differ although nothing that is recorded does."""
    if claim.extends:
        return f"it trained a finished run on, and not as one run: {claim.extends}"
    if rebuilt.environment["device"] != "cpu" and not claim.config["train"].get("deterministic"):
        return "on a GPU kernels may add in any order without train.deterministic=true"
    if rebuilt.epochs and rebuilt.epochs == claim.epochs:
        return (
            "the training was the same in every epoch, so it is the recorded digest that was "
            "changed, or the weights after the training"
        )
    return (
        "what is left is what is not recorded: changed code of torchyard or of a library, or a "
        "plugin that draws random numbers of its own"
    )
