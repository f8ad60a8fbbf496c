"""The processes, or GPUs, that train one network together.

Every process takes its share of each batch; the gradients are averaged so that the step is
that of the whole batch: N processes train what one would at the same batch size.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.manager import host
from torchyard.core.hosting.sources import raised_in

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


logger = logging.getLogger(__name__)

Emit = Callable[[Any], None]


def train_together(
    train: Callable[[Any, Emit, Team, torch.device], dict[str, Any]],
    argument: Any,
    processes: int,
    device: torch.device,
    emit: Emit,
) -> dict[str, Any]:
    """Run `train(argument, emit, team, device)` in new processes; gives the leader's result.

    Started by torch's elastic launcher. Rendezvous and process group meet in files of a
    temporary folder, and speak through this machine's loopback alone.

    Args:
        train: importable by its module and name.
        argument: plain values.
        processes: how many.
        device: "cpu" for all, or "cuda" for one GPU each.
        emit: told what the leader tells.

    Raises:
        UserError, RunError: as `train` raised them.
        RunError: a process died, with its traceback.
    """
    cores = os.cpu_count() or 1
    if device.type == "cpu" and processes > cores:
        logger.warning(
            "train.processes=%d on %d cores: they wait for each other.", processes, cores
        )
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"train.processes={processes}: there are {torch.cuda.device_count()} GPUs here"
        )
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        # Else the launcher serves a store on every address of the machine.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with tempfile.TemporaryDirectory() as folder, Listener(f"{folder}/events", "AF_UNIX") as door:
        threading.Thread(target=_forward, args=(door, emit), daemon=True).start()
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="torchyard",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/rendezvous",
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            shutdown_timeout=5,
        )
        try:
            results = elastic_launch(launch, _member)(
                train, argument, device.type, folder, os.getpid()
            )
        except ChildFailedError as error:
            raise _explained(error, Path(folder)) from error
    leaders: dict[str, Any] = results[0]
    return leaders


def _member(
    train: Any, argument: Any, device_type: str, folder: str, launcher: int
) -> dict[str, Any]:
    """One process of the team."""
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=(Path(folder) / "group").as_uri(),
        rank=rank,
        world_size=size,
    )
    try:
        if rank:
            return train(argument, lambda event: None, ProcessTeam(), device)  # type: ignore[no-any-return]
        with Client(f"{folder}/events", "AF_UNIX") as events:
            result: dict[str, Any] = train(argument, events.send, ProcessTeam(), device)
            events.send(None)
            events.recv()  # all that was told has been heard
        return result
    except Exception as error:
        # The others would wait for this process: it ends all of them by failing, and they
        # fail in their turn, of which nobody wants to hear.
        if not (first := Path(folder) / "error").exists():
            with atomic_write(first) as file:
                file.write(json.dumps(_told(error, rank)).encode())
        raise
    finally:
        dist.destroy_process_group()


def _end_with(launcher: int) -> None:
    # Killed at once, the launcher cannot end its processes: none of them outlives it.
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


def _forward(door: Listener, emit: Emit) -> None:
    with contextlib.suppress(EOFError, OSError), door.accept() as leader:
        while (event := leader.recv()) is not None:
            emit(event)
        leader.send("heard")


def _told(error: Exception, rank: int) -> list[Any]:
    if isinstance(error, UserError):
        return ["user", error.problems]
    if isinstance(error, RunError):
        return ["run", str(error), error.details]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    where = raised_in(error, host().sources)
    return [
        "run",
        f"Process {rank} of the training failed{where}: {reason}",
        traceback.format_exc(),
    ]


def _explained(error: ChildFailedError, folder: Path) -> Exception:
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # the launcher's own
            name = signal.Signals(-failure.exitcode).name
            return RunError(f"Process {rank} of the training died ({name}).")
    if (first := folder / "error").exists():
        kind, *arguments = json.loads(first.read_bytes())
        return UserError(*arguments) if kind == "user" else RunError(*arguments)
    rank, failure = error.get_first_failure()
    return RunError(f"Process {rank} of the training failed.", str(failure.message))
