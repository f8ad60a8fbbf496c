"""The processes, or GPUs, that train one network together.

Every process takes its share of each batch; the gradients are averaged so that the step is
that of the whole batch: N processes train what one would at the same batch size.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


class Team:
    """The processes that train together; this class is the team of one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What to call in place of the network in training."""
        return network

    def share(self, index: torch.Tensor) -> tuple[torch.Tensor, float]:
        """This process's samples of a batch, and the weight of their mean loss.

        The mean over the processes of weight x mean loss is the mean of the whole batch.
        """
        return index, 1.0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return values

    def leaders(self, value: T) -> T:
        """The leader's value, in every process."""
        return value

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        return [value]


ALONE = Team()


class DataParallelTeam(Team):
    """One process whose GPUs share each batch (`nn.DataParallel`); without GPUs, the CPU."""

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network in `nn.DataParallel`; the sizes of the first batch are printed."""
        outer = nn.DataParallel(network)
        _print_sizes(network, "\tIn Model:")
        _print_sizes(outer, "Outside:")
        return outer


class ProcessTeam(Team):
    """The processes of `torch.distributed`'s group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._batch = 0  # samples of the last batch

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network in DistributedDataParallel; the sizes of the first batch are printed."""
        _print_sizes(network, f"\tIn Model, process {self.rank}:")
        if self.leads:
            _print_sizes(network, "Outside:", lambda: self._batch)
        return nn.parallel.DistributedDataParallel(network)

    def share(self, index: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Every size-th sample; one of weight 0 where there are fewer samples than processes."""
        self._batch = len(index)
        own = index[self.rank :: self.size]
        if not len(own):
            return index[:1], 0.0
        return own, len(own) * self.size / len(index)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        return self.total(values) / self.size

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    def leaders(self, value: T) -> T:
        """The leader's value, in every process."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        found: T = box[0]
        return found

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box


def _print_sizes(module: nn.Module, where: str, count: Callable[[], int] | None = None) -> None:
    """Print the sizes of one batch, as the tutorial does; `count` if it is of so many samples."""

    def show(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        rows = count() if count else len(output)
        before, after = [rows, *inputs[0].shape[1:]], [rows, *output.shape[1:]]
        sizes = f"input size {before}, output size {after}"
        # One write: the lines of several processes come out of one pipe.
        sys.stdout.write(f"{where} {sizes}\n")
        sys.stdout.flush()
        handle.remove()

    handle = module.register_forward_hook(show)
