"""How many processes and GPUs train one network together.

Every process takes its shard of each batch; the gradients are averaged so that the step is that
of the whole batch: N processes train what one would at the same batch size.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


class Strategy:
    """What `fit` needs of the processes that train; this class is one process on one device.

    Attributes:
        rank: this process's number, from 0.
        world_size: how many processes there are.
    """

    rank = 0
    world_size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """What to call in place of the network in training."""
        return network

    def exchange(self, wrapped: nn.Module, *, wanted: bool) -> AbstractContextManager[Any]:
        """Whether a backward pass ends with the gradients' average over the processes.

        Of a batch in parts only the last does: its sum is averaged.
        """
        return nullcontext()

    def shard(self, index: torch.Tensor) -> tuple[torch.Tensor, float]:
        """This process's samples of a batch, and the weight of their mean loss.

        The mean over the processes of weight x mean loss is the mean of the whole batch.
        """
        return index, 1.0

    def all_reduce_mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        return self.all_reduce_sum(values) / self.world_size

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return values

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process."""
        return value

    def all_gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        return [value]


class DataParallel(Strategy):
    """One process whose GPUs share each batch (`nn.DataParallel`); without GPUs, the CPU."""

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network in `nn.DataParallel`; the sizes of the first batch are printed."""
        outer = nn.DataParallel(network)
        _print_sizes(network, "\tIn Model:")
        _print_sizes(outer, "Outside:")
        return outer


class DistributedDataParallel(Strategy):
    """The processes of `torch.distributed`'s default group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._batch_size = 0  # of the last batch, all shards together

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network in DistributedDataParallel; the sizes of the first batch are printed."""
        _print_sizes(network, f"\tIn Model, process {self.rank}:")
        if self.is_main:
            _print_sizes(network, "Outside:", lambda: self._batch_size)
        return nn.parallel.DistributedDataParallel(network)

    def exchange(  # noqa: D102 - as above
        self, wrapped: nn.Module, *, wanted: bool
    ) -> AbstractContextManager[Any]:
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return nullcontext() if wanted else wrapped.no_sync()

    def shard(self, index: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Every N-th sample; one of weight 0 where there are fewer samples than processes."""
        self._batch_size = len(index)
        own = index[self.rank :: self.world_size]
        if not len(own):
            return index[:1], 0.0
        return own, len(own) * self.world_size / len(index)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:  # noqa: D102 - as above
        values = values.clone()
        dist.all_reduce(values)
        return values

    def broadcast(self, value: T) -> T:  # noqa: D102
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def all_gather(self, value: T) -> list[T]:  # noqa: D102
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def _print_sizes(module: nn.Module, where: str, count: Callable[[], int] | None = None) -> None:
    """Print the sizes of one batch; `count` returns the batch size if the output does not show it.

    As in https://docs.pytorch.org/tutorials/beginner/blitz/data_parallel_tutorial.html.
    """

    def show(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        rows = count() if count else len(output)
        before, after = [rows, *inputs[0].shape[1:]], [rows, *output.shape[1:]]
        # One write: the lines of several processes come out of one pipe.
        sys.stdout.write(f"{where} input size {before}, output size {after}\n")
        sys.stdout.flush()
        handle.remove()

    handle = module.register_forward_hook(show)
