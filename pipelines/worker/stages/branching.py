"""Which epochs the trials of a study have in common: found from what their schedules do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import shared_settings
from torchyard.core.training import network as networks
from torchyard.core.training.batches import steps_per_epoch, total_steps, training_splits
from torchyard.core.training.events import Emit
from torchyard.core.training.network.groups import Group
from torchyard.core.training.prefixes import ScheduleReplay
from torchyard.pipelines.worker.checks.config_check import Config, model_size
from torchyard.pipelines.worker.checks.trial_step import Weights, stand_ins
from torchyard.pipelines.worker.search.trial_training import new_network

MOST_STEPS = 3_000_000  # of all schedules, which takes a minute


def find_branches(configs: Sequence[Config], data: str, emit: Emit) -> dict[str, Any]:
    """Where trainings part that differ in nothing but their schedules and numbers of epochs.

    Args:
        configs: of the trainings.
        data: the folder of the prepared data set, of all.

    Returns:
        epochs: for each, after which epochs others part from it, or end, and the name of what they
        have in common until then.
    """
    prepared = PreparedDataset.open(Path(data))
    each = [resolve_once(config, host()) for config in configs]
    settings = each[0].config.train
    train, _ = training_splits(prepared, each[0].config)
    length = steps_per_epoch(len(train), settings.known_batch_size)
    lasts = [total_steps(len(train), resolved.config.train) for resolved in each]
    if sum(lasts) > MOST_STEPS or any(one.scheduler.follows_metric for one in each):
        return {"epochs": [{} for _ in each]}
    _, groups = model_size(each[0], prepared.spec)
    network = new_network(each[0], prepared, None)
    weights = stand_ins(dict(network.model.named_parameters()))
    known = json.dumps([shared_settings(configs[0]), prepared.digest], sort_keys=True)
    family = hashlib.sha256(known.encode()).hexdigest()
    names = []
    for resolved, last in zip(each, lasts, strict=True):
        replay = schedule_replay(resolved, weights, groups, last)
        ends = [min(last, epoch * length) for epoch in range(1, -(-last // length) + 1)]
        found = [f"{family[:12]}-{end}-{replay.advance(end)[:32]}" for end in ends]
        names.append(found)
    return {"epochs": _branches(names)}


def schedule_replay(
    resolved: ResolvedConfig, weights: Weights, groups: list[Group], steps: int
) -> ScheduleReplay:
    """The replay of a configuration's schedule.

    Args:
        weights: the model's, or `stand_ins` for them.
        groups: of the optimizer.
        steps: of the whole run.
    """
    optimizer = networks.build_optimizer(resolved.optimizer, weights, groups)
    return ScheduleReplay(optimizer, resolved.scheduler.build(optimizer, steps))


def _branches(names: Sequence[Sequence[str]]) -> list[dict[int, str]]:
    """The epochs after which what follows differs, of those who have come there together."""
    following: dict[str, set[str]] = {}
    for number, of_one in enumerate(names):
        # An end is each training's own: two that are equal throughout are trained once.
        for name, after in zip(of_one, [*of_one[1:], f"end of {number}"], strict=True):
            following.setdefault(name, set()).add(after)
    return [
        {epoch: name for epoch, name in enumerate(of_one, 1) if len(following[name]) > 1}
        for of_one in names
    ]
