"""Starting a team of processes with torch's elastic launcher, and hearing from its leader."""

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
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from core.errors import RunError, UserError
from core.host import host
from core.plugin_sources import raised_in
from core.team import ProcessTeam, Team
from core.whole_file import whole_file

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
            with whole_file(first) as file:
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
