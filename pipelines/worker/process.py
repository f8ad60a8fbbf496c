"""The worker process, which does the torch work, as its parent sees it.

The parent holds Prefect and MLflow, the worker torch: their imports, seconds each, overlap
on two cores, and a worker that dies (out of memory, a crash in native code) is an error
of one stage, not the end of the flow. Parent and worker (`serve.py`) exchange JSON lines: a
request `{stage, temporary, arguments}`, events while it runs, then a result or an error.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.files import cache_folder, check_cache, private_folder
from torchyard.core.data.remote.shared import check_shared
from torchyard.core.errors import DivergedError, RunError, UnreachableError, UserError
from torchyard.core.redaction import redacted
from torchyard.core.training.events import Emit, EpochDone, from_plain

TAIL_LINES = 20  # of the worker's output, shown if it dies

# Otherwise glibc returns memory after each large tensor and takes it anew, page by page
# (`benchmarks/reasons/execution.md`). Before 2.35 it ignores a second above 2^25.
GLIBC = tuple(int(digits) for digits in re.findall(r"\d+", platform.libc_ver()[1])[:2])
MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2 ** (28 if GLIBC >= (2, 35) else 25)),
}

# How often a thread of OpenMP (GNU's, as in torch for Linux) looks for work before it sleeps. By
# default 300,000 times: two threads of a small network wait for each other at every operation, and
# on a shared processor spin away each other's time (`benchmarks/reasons/processors.md`).
SPINS = {"GOMP_SPINCOUNT": "1500"}

# What a plugin prints does not depend on the terminal's encoding.
OUTPUT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}


def start_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What C libraries of a worker look for at its start, added to an environment."""
    # OMP_WAIT_POLICY is the user's choice, which a count would overrule.
    spins = {} if "OMP_WAIT_POLICY" in environment else SPINS
    return {**MEMORY, **spins, **environment}


def _environment() -> dict[str, str]:
    # A plugin in the worker can import what this process can.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return start_variables(os.environ) | OUTPUT | own_folders() | {"PYTHONPATH": path}


def own_folders() -> dict[str, str]:
    """Variables that have torch keep what it compiles where nobody else can put code.

    By default that is /tmp/torchinductor_<user>. The first variable moves all but precompiled
    headers; those are below what the temporary folder is while torch is imported.
    """
    try:
        folder = private_folder(cache_folder() / "compiled")
    except (OSError, UserError):  # the cache cannot be written, or is somebody else's
        folder = Path(tempfile.mkdtemp(prefix="torchyard-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TMPDIR": str(folder)}


class WorkerKilledError(RunError):
    """The process that ran a stage was killed, by the system or by somebody."""


class Process(Protocol):
    """A worker process: the part of `subprocess.Popen` that its parent uses."""

    @property
    def pid(self) -> int: ...  # noqa: D102

    @property
    def stdin(self) -> IO[str] | None: ...  # noqa: D102

    @property
    def stdout(self) -> IO[str] | None: ...  # noqa: D102

    def poll(self) -> int | None: ...  # noqa: D102

    def wait(self) -> int: ...  # noqa: D102

    def kill(self) -> None: ...  # noqa: D102


# Set in a process that has torch imported and may be forked: starts a worker from its command line,
# its environment and the descriptor for its messages.
fork: Callable[[list[str], dict[str, str], int], Process] | None = None


class Worker:
    """The parent's side: starts the process, runs stages in it, ends it.

    Args:
        on_output: called with every line that something in the worker prints.
    """

    def __init__(self, on_output: Callable[[str], None] = lambda line: None) -> None:
        reader, writer = os.pipe()
        # -P: nothing in the working folder may shadow a module.
        command = [sys.executable, "-P", "-m", "torchyard.pipelines.worker.serve", str(writer)]
        self._process: Process
        if fork is not None and threading.active_count() == 1:
            self._process = fork(command, _environment(), writer)
        else:
            # A session of its own: Ctrl-C in the terminal reaches the parent, which decides.
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        os.close(writer)
        self._messages: TextIO = os.fdopen(reader, encoding="utf-8")
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.on_output = on_output
        self._calling = threading.Lock()
        self._aborted: BaseException | None = None
        self._printer = threading.Thread(target=self._forward_output, daemon=True)
        self._printer.start()

    @property
    def alive(self) -> bool:
        """Whether the process can take a stage."""
        return self._process.poll() is None and not self._messages.closed

    def call(
        self,
        stage: str,
        on_event: Emit = lambda event: None,
        temporary: Path | None = None,
        go_on: Callable[[EpochDone], bool] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Run a stage in the worker and wait for its result.

        Whatever interrupts the wait (Ctrl-C, an error in `on_event`) ends the worker, which would
        otherwise finish a stage that nobody waits for.

        Args:
            stage: a name in `stages.STAGES`.
            on_event: called with each event.
            temporary: a folder for the stage's temporary files; made if it is not there.
            go_on: of a training in one process: after each epoch, whether there is to be another.
            arguments: plain values, sent as JSON.

        Raises:
            UserError, RunError: as the stage raised them.
            RunError: it raised anything else, or the process died.
        """
        with self.submit(stage, on_event, temporary, go_on, **arguments) as result:
            return result()

    @contextlib.contextmanager
    def submit(
        self,
        stage: str,
        on_event: Emit = lambda event: None,
        temporary: Path | None = None,
        go_on: Callable[[EpochDone], bool] | None = None,
        **arguments: Any,
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """Run a stage beside the body of the `with`; yields a function that waits for its result.

        It is to be called once: leaving the body without the result ends the worker.
        """
        done = False

        def wait() -> dict[str, Any]:
            nonlocal done
            for line in self._messages:
                message = json.loads(line)
                if "event" in message:
                    event = from_plain(message["event"])
                    on_event(event)
                    if go_on is not None and isinstance(event, EpochDone):
                        with contextlib.suppress(BrokenPipeError):  # it died: read to the end
                            self._send({"go_on": go_on(event)})
                    continue
                done = True
                if "error" in message:
                    raise _stage_error(message)
                result: dict[str, Any] = message["result"]
                return result
            raise self._exit_error(stage)

        with self._calling:
            try:
                try:
                    request = {"stage": stage, "temporary": temporary and str(temporary)}
                    answered = go_on is not None
                    self._send(request | {"answered": answered, "arguments": arguments})
                except (BrokenPipeError, ValueError):  # ValueError: it was closed before
                    raise self._exit_error(stage) from None
                yield wait
            finally:
                if not done:
                    self.close()

    def wait_for_stage(self) -> None:
        """Leave the processor to other processes until the next stage is requested.

        Otherwise the worker imports what stages will need, and delays a server that starts now.
        """
        with contextlib.suppress(BrokenPipeError, ValueError):  # the next stage reports it
            self._send({"stage": None})

    def abort(self, reason: BaseException) -> None:
        """End the process and those it started, from another thread.

        Whoever waits for a stage raises `reason`.
        """
        self._aborted = reason
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._messages.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _exit_error(self, stage: str) -> BaseException:
        status = self._process.wait()
        self._printer.join(timeout=1)
        self._messages.close()
        if self._aborted is not None:
            return self._aborted
        kind, how = RunError, f"exit status {status}"
        if status < 0:
            how = signal.Signals(-status).name
            if status == -signal.SIGKILL:
                kind, how = WorkerKilledError, f"{how}, as the system does when memory runs out"
        return kind(f"The process that ran '{stage}' died ({how}).", details="\n".join(self._tail))

    def _forward_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "resource_tracker" in line:
                continue  # joblib's process, which outlives a worker that is killed, counts
            shown = redacted(line.rstrip("\n"))
            self._tail.append(shown)
            self.on_output(shown)


_shared: dict[int, Worker] = {}  # by the place of the trial that uses it
_place: ContextVar[int] = ContextVar("place", default=0)


def shared_worker() -> Worker:
    """The worker of this process, started where there is none or it has ended.

    In a trial of a study it is that of the trial's place.
    """
    place = _place.get()
    if place not in _shared or not _shared[place].alive:
        _shared[place] = Worker()
    return _shared[place]


@contextlib.contextmanager
def worker_of(place: int) -> Iterator[None]:
    """Have `shared_worker`, in the body, be the worker of one of several places."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def abort_shared_worker(reason: BaseException) -> None:
    """`Worker.abort` the workers of this process, if there are any."""
    for worker in list(_shared.values()):
        worker.abort(reason)


def _stage_error(message: dict[str, Any]) -> Exception:
    if message["error"] == "user":
        kind = UnreachableError if message["unreachable"] else UserError
        return kind(message["problems"])
    failure = DivergedError if message["diverged"] else RunError
    return failure(message["message"], details=message["details"])


def check_config(
    config: RunConfig,
    *,
    exports: bool = False,
    weights: str | None = None,
    resumed: bool = False,
) -> dict[str, Any]:
    """Check the device, and a step of the training on two samples, in the worker before any work.

    Args:
        exports: whether to try torch.export as well, which takes longer.
        weights: the file with those of a run that `model.weights` names.
        resumed: whether the run has a checkpoint, so that it needs no other weights.

    Raises:
        UserError: with every problem found; or the cache folder, or what machines
            share, cannot be written.
    """
    check_cache()
    check_shared()
    return _checked(config.model_dump_json(), str(cache_folder()), exports, weights, resumed)


# The command line checks before there is a flow, and the flow checks again.
@functools.cache
def _checked(
    config: str, cache: str, exports: bool, weights: str | None, resumed: bool
) -> dict[str, Any]:
    return shared_worker().call(
        "check",
        config=json.loads(config),
        cache=cache,
        exports=exports,
        weights=weights,
        resumed=resumed,
    )
