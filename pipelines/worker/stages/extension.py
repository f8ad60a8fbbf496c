"""The first checkpoint of a run that trains on where a finished one ended."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training import checkpoint
from torchyard.core.training import device as devices
from torchyard.core.training import network as networks
from torchyard.core.training.batches import steps_per_epoch, total_steps, training_splits
from torchyard.core.training.events import Emit
from torchyard.core.training.execution import Execution
from torchyard.pipelines.worker.checks.config_check import Config, model_size
from torchyard.pipelines.worker.search.batch_size import with_recorded_batch_size


def extend(
    config: Config, before: Config, data: str, source: str, folder: str, emit: Emit
) -> dict[str, Any]:
    """Write the checkpoint with which a run begins that trains on where a finished one ended.

    Weights, random generators and the optimizer's state are those of the last checkpoint. The
    schedule is the new run's, as many steps on as the old one was. Hyperparameters of the
    optimizer are replaced where the new settings, or the new schedule, make them others.

    Args:
        config, before: of the run that begins, and of the finished one.
        data: folder of the prepared data set.
        source, folder: of the finished run, and of the one that begins.

    Returns:
        epochs: how many are trained already; reasons: why the weights will not be those of one
        long run, besides settings that differ; none if they will; placement: the device.

    Raises:
        UserError: nothing would be trained, or the weights do not fit the model.
        RunError: the finished run has no checkpoint that can be read.
    """
    new, old = (
        with_recorded_batch_size(resolve_once(each, host()), Path(source), Path(folder))
        for each in (config, before)
    )
    prepared = PreparedDataset.open(Path(data))
    if (last := checkpoint.find(Path(source))) is None:
        raise RunError(f"There is no checkpoint in {source} that can be read.")
    state = checkpoint.load(last)
    position = state["position"]
    counts = [len(training_splits(prepared, run.config)[0]) for run in (old, new)]
    batches = [
        steps_per_epoch(count, run.config.train.known_batch_size)
        for count, run in zip(counts, (old, new), strict=True)
    ]
    _check_that_something_is_left(position, new, batches[1])

    network = networks.Network(
        networks.build_model(new.model, prepared.spec),
        prepared,
        new.config.dataset.normalize,
    )
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model: the weights of the finished run do not fit it: {reason}") from None
    taken = int(state["scheduler"].get("last_epoch", position["step"]))
    lengths = [
        total_steps(count, run.config.train) for count, run in zip(counts, (old, new), strict=True)
    ]
    ended_early = position["step"] != position["epoch"] * batches[0]
    (size, groups), (_, groups_before) = (model_size(run, prepared.spec) for run in (new, old))
    then, longer = (_Schedule(old, network, groups_before, length, taken) for length in lengths)
    if batches[0] != batches[1]:  # as if the epochs so far had had batches of this size
        counted, position["step"] = position["step"], position["epoch"] * batches[1]
        taken = taken * position["step"] // counted
    now = _Schedule(new, network, groups, lengths[1], taken)
    other = [group.names for group in groups] != [group.names for group in groups_before]
    fresh = other or old.config.optimizer.name != new.config.optimizer.name
    _move_on(state, then, now, fresh=fresh)
    device = devices.choose_device(new.config.device)
    executions = [
        Execution.choose(
            run.config, network.model, size, length, device, run.optimizer.needs_closure
        )
        for run, length in zip((old, old, new), (*lengths, lengths[1]), strict=True)
    ]
    if not state["scaler"]:
        enabled = executions[2].precision == "float16"
        state["scaler"] = torch.amp.GradScaler(device.type, enabled=enabled).state_dict()
    checkpoint.save(state, Path(folder) / LAST, state["position"]["step"])

    reasons = []
    if ended_early:
        reasons.append("its last epoch ended early, by train.max_steps")
    if then.rates != longer.rates:
        reasons.append(
            f"the schedule '{old.config.scheduler.name}' depends on the length of the run: with "
            f"{new.config.train.epochs} epochs from the start, earlier steps would have had other "
            "learning rates"
        )
    if executions[0] != executions[1]:
        reasons.append("a run of that length computes otherwise (train.compile)")
    if device.type != "cpu" and not new.config.train.deterministic:
        reasons.append(f"on {device} no two runs are equal without train.deterministic=true")
    placement = devices.describe_device(device)
    return {"epochs": position["epoch"], "reasons": reasons, "placement": placement}


def _check_that_something_is_left(
    position: dict[str, Any], new: ResolvedConfig, batches: int
) -> None:
    settings, epochs = new.config.train, position["epoch"]
    if epochs >= settings.epochs:
        raise UserError(
            f"train.epochs: {epochs} epochs are trained already, so it must be greater than "
            f"{epochs}, not {settings.epochs}"
        )
    if settings.max_steps is not None and epochs * batches >= settings.max_steps:
        trained = f"{epochs * batches:,} steps are trained already"
        raise UserError(f"train.max_steps: {trained}: add a greater one, or train.max_steps=none")
    if settings.patience is not None and epochs - position["best_epoch"] >= settings.patience:
        raise UserError(
            f"train.patience: {epochs - position['best_epoch']} epochs have passed without a "
            "lower validation loss: add a greater one, or train.patience=none"
        )


class _Schedule:
    """Optimizer and schedule of a run of `total` steps after some, in which nothing was optimized.

    Attributes:
        rates: a digest of the hyperparameters of each step until then.
        optimizer, scheduler: their states then.
    """

    def __init__(
        self,
        run: ResolvedConfig,
        network: networks.Network,
        groups: Sequence[networks.Group],
        total: int,
        taken: int,
    ) -> None:
        parameters = dict(network.model.named_parameters())
        optimizer = networks.build_optimizer(run.optimizer, parameters, groups)
        scheduler = run.scheduler.build(optimizer, total)
        rates = hashlib.sha256()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer made no step
            for _ in range(0 if run.scheduler.follows_metric else taken):
                for group in optimizer.param_groups:
                    rates.update(repr({k: v for k, v in group.items() if k != "params"}).encode())
                scheduler.step()
        self.rates = rates.hexdigest()
        self.optimizer, self.scheduler = optimizer.state_dict(), scheduler.state_dict()


def _move_on(state: dict[str, Any], then: _Schedule, now: _Schedule, *, fresh: bool) -> None:
    """Replace in a checkpoint what the new run's settings make another.

    Args:
        fresh: whether the optimizer begins anew.
    """
    if repr(then.scheduler) != repr(now.scheduler):
        state["scheduler"] = now.scheduler
    groups, before, after = (
        each["param_groups"] for each in (state["optimizer"], then.optimizer, now.optimizer)
    )
    if fresh or [each["params"] for each in groups] != [each["params"] for each in after]:
        state["optimizer"] = now.optimizer
        return
    for group, old, new in zip(groups, before, after, strict=True):
        group |= {key: value for key, value in new.items() if repr(old.get(key)) != repr(value)}
