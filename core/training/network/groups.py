"""Groups of parameters that the optimizer treats differently: which, and with what settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchyard.core.config.choices import OptimizerChoice
from torchyard.core.errors import UserError
from torchyard.core.hosting.params import OptimizerParams
from torchyard.core.training.network.blocks import depths
from torchyard.core.training.network.freezing import matching, nearest_layers


@dataclass(frozen=True)
class Group:
    """Parameters with the same settings.

    Attributes:
        names: of the model's parameters.
        settings: that differ from the optimizer's.
    """

    names: tuple[str, ...]
    settings: Mapping[str, Any]


def parameter_groups(
    model: nn.Module,
    learning: Sequence[str],
    chosen: OptimizerChoice,
    settings: Sequence[Mapping[str, Any]],
    optimizer: OptimizerParams,
) -> list[Group]:
    """The groups that a configuration asks for.

    The first, whose learning rate is recorded, has the optimizer's own, if any has it.
    A parameter is of the first of `optimizer.groups` that matches it. A learning rate that a group
    sets is final; all others fall from block to block with `layer_decay`
    (BEiT, arXiv:2106.08254), counted from the last block, whose is the optimizer's.

    Args:
        model: also one on torch's meta device.
        learning: the parameters that are trained, now or later.
        chosen: `optimizer.groups` and the rest.
        settings: of each of them, typed.
        optimizer: the parameters of the plugin.

    Raises:
        UserError: a pattern matches nothing, or the optimizer has nothing of what is asked for.
    """
    problems, own = [], dict[str, Mapping[str, Any]]()
    for index, (group, values) in enumerate(zip(chosen.groups, settings, strict=True)):
        slot, some = f"optimizer.groups.{index}", False
        for pattern in group.match:
            if not (found := matching(pattern, learning)):
                frozen = matching(pattern, [name for name, _ in model.named_parameters()])
                near = nearest_layers(pattern, model)
                why = "what is frozen for the whole run" if frozen else f"no parameter.{near}"
                problems.append(f"{slot}: '{pattern}' matches {why}")
            some |= bool(found) and not own.keys() >= set(found)
            own |= {name: values for name in found if name not in own}
        if not some and all(matching(pattern, learning) for pattern in group.match):
            problems.append(f"{slot}: all that it matches is in a group before it")
    decay, fields = chosen.layer_decay, type(optimizer).model_fields
    if decay is not None and "lr" not in fields:
        problems.append(f"optimizer.layer_decay: '{chosen.name}' has no parameter 'lr'")
    if problems:
        raise UserError(problems)
    weights = dict(model.named_parameters())
    blocks = {} if decay is None else depths(model)
    last = max(blocks.values(), default=0)
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name in learning:
        changed: dict[str, Any] = {}
        if not chosen.decay_norms and weights[name].ndim <= 1:
            changed["weight_decay"] = 0.0
        if decay is not None and blocks[name] < last:
            changed["lr"] = getattr(optimizer, "lr") * decay ** (last - blocks[name])  # noqa: B009
        changed |= own.get(name, {})
        groups.setdefault(repr(sorted(changed.items())), ([], changed))[0].append(name)
    made = [Group(tuple(names), changed) for names, changed in groups.values()]
    return sorted(made, key=lambda group: ("lr" in group.settings, len(group.settings)))


def build_optimizer(
    plugin: OptimizerParams, parameters: Mapping[str, nn.Parameter], groups: Sequence[Group]
) -> torch.optim.Optimizer:
    """The optimizer of parameters.

    It is given the parameters alone, unless there are groups with settings.

    Args:
        parameters: by the model's names.
        groups: of those that are trained; without any, of all.

    Raises:
        ValueError: it does not take groups, or does not build an optimizer.
    """
    if not any(group.settings for group in groups):
        names = [name for group in groups for name in group.names] or list(parameters)
        return _an_optimizer(plugin.build([parameters[name] for name in names]))
    given = [
        {"params": [parameters[name] for name in group.names], **group.settings} for group in groups
    ]
    try:
        optimizer = _an_optimizer(plugin.build([dict(each) for each in given]))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            "cannot take groups of parameters, which optimizer.groups, layer_decay and "
            f"decay_norms make: {type(error).__name__}: {error}"
        ) from error
    taken = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    for group in given:
        for key, value in group.items():
            if key == "params":
                continue
            if key not in optimizer.defaults:
                known = ", ".join(sorted(optimizer.defaults))
                raise ValueError(f"'{key}' is not a setting of a group  (groups have: {known})")
            if any(taken.get(id(weight), {}).get(key) != value for weight in group["params"]):
                raise ValueError(f"does not take over '{key}' of a group of parameters")
    return optimizer


def _an_optimizer(made: Any) -> torch.optim.Optimizer:
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(f"builds a {type(made).__name__}, not a torch.optim.Optimizer")
    return made
