"""The blocks of a network, in the order in which it holds them: what is deep in it and what is not.

A block is an item of the network's lists of modules (`nn.Sequential`, `nn.ModuleList`,
`nn.ModuleDict`), such as one residual or transformer block, or a layer beside them. A module that
holds more than half of all parameters, such as an encoder, is looked into. Norms belong to the
block before them, and a parameter beside the modules, such as a class token, to the first block.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depths(network: nn.Module) -> dict[str, int]:
    """The block of each parameter, by the parameter's name; the first block is 0."""
    total = _size(network)
    found: dict[str, int] = {}
    count = 0
    for name, block in _blocks(network, "", total):
        weights = dict(block.named_parameters())
        count += bool(count == 0 or any(each.ndim > 1 for each in weights.values()))
        found |= {f"{name}.{each}": count - 1 for each in weights}
    # One that several modules share is named once, by `named_parameters`.
    return {name: found.get(name, 0) for name, _ in network.named_parameters()}


def _size(module: nn.Module) -> int:
    """How many values its parameters have."""
    return sum(weight.numel() for weight in module.parameters())


def _blocks(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a module with their names."""
    for name, child in module.named_children():
        weights = _size(child)
        inner = any(True for _ in child.children())
        if not weights:
            continue
        if inner and (type(child) in _LISTS or weights > total / 2):
            yield from _blocks(child, f"{prefix}{name}.", total)
        else:
            yield f"{prefix}{name}", child
