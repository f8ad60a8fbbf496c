"""Starting the processes of DistributedDataParallel with torch's elastic launcher.

https://docs.pytorch.org/docs/stable/elastic/run.html
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
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import raised_in
from torchyard.core.training.events import Emit
from torchyard.core.training.parallel.strategy import DistributedDataParallel, Strategy

logger = logging.getLogger(__name__)

Train = Callable[[Any, Emit, Strategy, torch.device], dict[str, Any]]


def launch(
    train: Train, arguments: Any, processes: int, device: torch.device, emit: Emit
) -> dict[str, Any]:
    """Run `train(arguments, emit, strategy, device)` in new processes.

    Rendezvous and process group meet in files of a temporary folder, and speak through this
    machine's loopback alone.

    Args:
        train: importable by its module and name.
        arguments: plain values.
        processes: how many.
        device: "cpu" for all, or "cuda" for one GPU each.
        emit: called in this process with the events of rank 0.

    Returns:
        The result of rank 0.

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
        # Otherwise the launcher serves a store on every address of the machine.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with tempfile.TemporaryDirectory() as folder, Listener(f"{folder}/events", "AF_UNIX") as events:
        threading.Thread(target=_forward_events, args=(events, emit), daemon=True).start()
        config = LaunchConfig(
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
            results = elastic_launch(config, _run_rank)(
                train, arguments, device.type, folder, os.getpid()
            )
        except ChildFailedError as error:
            raise _cause(error, Path(folder)) from error
    result: dict[str, Any] = results[0]
    return result


def _run_rank(
    train: Train, arguments: Any, device_type: str, folder: str, launcher: int
) -> dict[str, Any]:
    """What each process runs: join the group, then train."""
    threading.Thread(target=_exit_with_launcher, args=(launcher,), daemon=True).start()
    if os.getppid() != launcher:
        os._exit(1)  # its folder may be gone, which the next line would wait for, deaf to threads
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(f"{folder}/group", world_size)  # type: ignore[attr-defined]
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
    )
    try:
        strategy = DistributedDataParallel()
        if rank:
            return train(arguments, lambda event: None, strategy, device)
        with Client(f"{folder}/events", "AF_UNIX") as events:
            result = train(arguments, events.send, strategy, device)
            events.send(None)
            events.recv()  # every event has been forwarded
        return result
    except Exception as error:
        # The other processes would wait for this one: it ends them by failing. Their errors
        # follow from the first one, which alone is kept.
        if not (first := Path(folder) / "error").exists():
            with atomic_write(first) as file:
                file.write(json.dumps(_as_plain(error, rank)).encode())
        raise
    finally:
        dist.destroy_process_group()


def _exit_with_launcher(launcher: int) -> None:
    # A launcher that is killed cannot end its processes.
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


def _forward_events(listener: Listener, emit: Emit) -> None:
    with contextlib.suppress(EOFError, OSError), listener.accept() as main:
        while (event := main.recv()) is not None:
            emit(event)
        main.send("all forwarded")


def _as_plain(error: Exception, rank: int) -> list[Any]:
    if isinstance(error, UserError):
        return ["user", error.problems]
    if isinstance(error, RunError):
        return ["run", str(error), error.details]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    where = raised_in(error, host().sources)
    message = f"Process {rank} of the training failed{where}: {reason}"
    return ["run", message, traceback.format_exc()]


def _cause(error: ChildFailedError, folder: Path) -> Exception:
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # the launcher's own
            name = signal.Signals(-failure.exitcode).name
            return RunError(f"Process {rank} of the training died ({name}).")
    if (first := folder / "error").exists():
        kind, *arguments = json.loads(first.read_bytes())
        return UserError(*arguments) if kind == "user" else RunError(*arguments)
    rank, failure = error.get_first_failure()
    return RunError(f"Process {rank} of the training failed.", str(failure.message))
