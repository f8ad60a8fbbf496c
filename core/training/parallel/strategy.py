"""How many processes and GPUs train one network together.

Every process takes its shard of each batch; the gradients are averaged so that the step is that
of the whole batch: N processes train what one would at the same batch size.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
"""

from __future__ import annotations

import io
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
        # Where the group's backend takes tensors from.
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        self._batch_size = 0  # of the last batch, all shards together

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network in DistributedDataParallel; the sizes of the first batch are printed."""
        _print_sizes(network, f"\tIn Model, process {self.rank}:")
        if self.is_main:
            _print_sizes(network, "Outside:", lambda: self._batch_size)
        return nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)

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

    # torch's own collectives of objects unpickle what another host sent.

    def broadcast(self, value: T) -> T:  # noqa: D102
        data = _as_tensor(value) if self.is_main else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor([len(data)], device=self._device)
        dist.broadcast(size, 0)
        sent = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        if self.is_main:
            sent.copy_(data)
        dist.broadcast(sent, 0)
        return value if self.is_main else _from_tensor(sent)

    def all_gather(self, value: T) -> list[T]:  # noqa: D102
        data = _as_tensor(value)
        size = torch.tensor([len(data)], device=self._device)
        sizes = [torch.empty_like(size) for _ in range(self.world_size)]
        dist.all_gather(sizes, size)
        longest = max(int(each) for each in sizes)
        own = torch.zeros(longest, dtype=torch.uint8, device=self._device)
        own[: len(data)] = data.to(self._device)
        gathered = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(gathered, own)
        return [_from_tensor(each[: int(n)]) for each, n in zip(gathered, sizes, strict=True)]


def _as_tensor(value: Any) -> torch.Tensor:
    """A state of tensors and plain values, as bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _from_tensor(data: torch.Tensor) -> Any:
    return torch.load(io.BytesIO(data.cpu().numpy().tobytes()), "cpu", weights_only=True)


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
