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
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import DivergedError, RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import raised_in
from torchyard.core.training.events import Emit
from torchyard.core.training.parallel.nodes import (
    BACKEND,
    NodeLostError,
    Nodes,
    connect,
    interface_to,
    nodes_key,
)
from torchyard.core.training.parallel.strategy import DistributedDataParallel, Strategy

logger = logging.getLogger(__name__)

Train = Callable[[Any, Emit, Strategy, torch.device], dict[str, Any]]
# As `_as_plain` calls them.
REPORTED: dict[str, type[UserError | RunError]] = {
    "user": UserError,
    "run": RunError,
    "diverged": DivergedError,
}


def launch(
    train: Train,
    arguments: Any,
    settings: TrainConfig,
    device: torch.device,
    emit: Emit,
    nodes: Nodes | None = None,
) -> dict[str, Any]:
    """Run `train(arguments, emit, strategy, device)` in new processes.

    On one host, rendezvous and process group meet in files of a temporary folder, and speak through
    its loopback alone.

    Args:
        train: importable by its module and name.
        arguments: plain values.
        settings: how many processes, on how many hosts, and what happens when some are lost.
        device: "cpu" for all, or "cuda" for one GPU each.
        emit: called in this process with the events of rank 0, on its host.
        nodes: the other hosts; None: there are none.

    Returns:
        The result of rank 0, on its host; else of another.

    Raises:
        UserError, RunError: as `train` raised them.
        RunError: a process died, with its traceback, or a host was lost.
    """
    cores, processes = os.cpu_count() or 1, settings.processes_here
    if device.type == "cpu" and processes > cores:
        logger.warning(
            "train.processes=%d on %d cores: they wait for each other.", processes, cores
        )
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"train.processes={processes}: there are {torch.cuda.device_count()} GPUs here"
        )
    interface = "lo0" if sys.platform == "darwin" else "lo"
    if nodes:
        interface = interface_to(nodes.endpoint[0])
    os.environ |= {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        # Otherwise the launcher serves a store on every address of the machine.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    # What it has to say is said by `_cause`.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, Listener(f"{folder}/events", "AF_UNIX") as events:
        threading.Thread(target=_forward_events, args=(events, emit), daemon=True).start()
        config = LaunchConfig(
            min_nodes=settings.min_nodes or settings.nodes,
            max_nodes=settings.nodes,
            nproc_per_node=processes,
            run_id="torchyard",
            rdzv_backend=BACKEND if nodes else "c10d",
            rdzv_endpoint="" if nodes else f"{folder}/rendezvous",
            rdzv_configs={
                "nodes": nodes,
                "join_timeout": settings.join_timeout,
                "goes_on": settings.max_restarts > 0,
                "store_type": "file",
            },
            local_addr="127.0.0.1",
            max_restarts=settings.max_restarts,
            shutdown_timeout=5,
        )
        endpoint = nodes.endpoint if nodes else None
        try:
            results = elastic_launch(config, _run_rank)(
                train, arguments, device.type, folder, os.getpid(), endpoint
            )
        except ChildFailedError as error:
            raise _cause(error, Path(folder), nodes) from error
        except RendezvousError as error:
            raise _lost(error, nodes) from error
    result: dict[str, Any] = results[min(results)]
    return result


def _run_rank(
    train: Train,
    arguments: Any,
    device_type: str,
    folder: str,
    launcher: int,
    endpoint: tuple[str, int] | None,
) -> dict[str, Any]:
    """What each process runs: join the group, then train."""
    # torch has the kernel send it when the launcher is gone: its traceback would say nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_launcher, args=(launcher,), daemon=True).start()
    if os.getppid() != launcher:
        os._exit(1)  # its folder may be gone, which the next line would wait for, deaf to threads
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here, attempt = int(os.environ["LOCAL_RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    if endpoint:
        nodes = Nodes(endpoint, connect(*endpoint), nodes_key(), is_first=False)
        store: Store = PrefixStore(f"round{os.environ['TORCHYARD_ROUND']}", nodes.store)
        before = int(os.environ["TORCHYARD_FIRST_NODE"]) * int(os.environ["LOCAL_WORLD_SIZE"])
        rank = (rank - before) % world_size
    else:
        store = FileStore(f"{folder}/group{attempt}", world_size)
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
        )
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
        plain = _as_plain(error, rank)
        if not (first := Path(folder) / f"error{attempt}").exists():
            with atomic_write(first) as file:
                file.write(json.dumps(plain).encode())
        if endpoint and plain[0] != "lost":
            nodes.fail(plain)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _exit_with_launcher(launcher: int) -> None:
    # A launcher that is killed cannot end its processes.
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(1)


def _forward_events(listener: Listener, emit: Emit) -> None:
    with contextlib.suppress(OSError):
        while True:  # each time that the processes begin again
            with listener.accept() as main, contextlib.suppress(EOFError):
                while (event := main.recv()) is not None:
                    emit(event)
                main.send("all forwarded")
                return


def _as_plain(error: Exception, rank: int) -> list[Any]:
    if isinstance(error, UserError):
        return ["user", error.problems]
    if isinstance(error, RunError):
        return [
            "diverged" if isinstance(error, DivergedError) else "run",
            str(error),
            error.details,
        ]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if isinstance(error, dist.DistError) or "gloo" in reason.lower():
        return ["lost", reason]
    where = raised_in(error, host().sources)
    message = f"Process {rank} of the training failed{where}: {reason}"
    return ["run", message, traceback.format_exc()]


def _cause(error: ChildFailedError, folder: Path, nodes: Nodes | None) -> Exception:
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # the launcher's own
            name = signal.Signals(-failure.exitcode).name
            return RunError(f"Process {rank} of the training died ({name}).")
    kept = sorted(folder.glob("error*"), key=lambda file: file.stat().st_mtime)
    kind, *arguments = json.loads(kept[-1].read_bytes()) if kept else ("none",)
    if kind in ("lost", "none") and nodes and (reported := nodes.failure()):
        kind, *arguments = reported
    if kind == "lost":
        others = "another host" if nodes else "another process"
        return RunError(f"The connection to {others} of the training was lost.", arguments[0])
    if kind in REPORTED:
        return REPORTED[kind](*arguments)
    rank, failure = error.get_first_failure()
    return RunError(f"Process {rank} of the training failed.", str(failure.message))


def _lost(error: RendezvousError, nodes: Nodes | None) -> Exception:
    if nodes and (reported := nodes.failure()):
        kind, *arguments = reported
        return REPORTED.get(kind, RunError)(*arguments)
    if isinstance(error, NodeLostError):
        return RunError("A host of the training gives no sign of life.")
    if isinstance(error, RendezvousTimeoutError):
        return RunError("Too few hosts of the training are left, and no other came in time.")
    if isinstance(error, RendezvousClosedError):
        return RunError("The training has ended without this host.")
    if nodes and not nodes.is_first:
        address, port = nodes.endpoint
        return RunError(f"The first host of the training, {address}:{port}, is gone.", str(error))
    return RunError("The hosts of the training lost one another.", str(error))
