"""The standby process of `torchyard up`: has imported what a run needs, and forks one per run.

python -P -m torchyard.pipelines.services.standby.process FOLDER DESCRIPTOR_OF_LOCK

Prefect, MLflow and torch take seconds to import. A command hands over its arguments, environment,
working folder and descriptors through a socket in the state folder (`client.py`); a process that
is forked from this one does what the command was to do, and a second one, forked from that, is its
torch worker. Plugins are imported in them alone. Where files, variables, limits or rights differ
from those that this process has (`sameness.py`), the command goes on by itself, and this process
starts anew as the command would.

This process has one thread of Python's, for only such a process can be forked.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from torchyard.core.hosting.sources import builtin_sources
from torchyard.pipelines import __main__
from torchyard.pipelines.local_run import quiet_prefect
from torchyard.pipelines.services.daemon import DAEMON_VARIABLE, report_pid
from torchyard.pipelines.services.standby import engine
from torchyard.pipelines.services.standby.client import DECISION_SECONDS, SOCKET
from torchyard.pipelines.services.standby.sameness import (
    folder_settings,
    loaded_files,
    read_early,
    stamp,
    surroundings,
)
from torchyard.pipelines.services.standby.title import set_title
from torchyard.pipelines.services.standby.worker import ForkedWorker
from torchyard.pipelines.worker import process
from torchyard.pipelines.worker.process import own_folders, start_variables

MODULE = "torchyard.pipelines.services.standby.process"
# What a run imports when it comes to it: all of the third parties that it may.
IMPORTED = (
    *("torchyard.pipelines.flow.pipeline", "prefect.task_engine"),
    *("matplotlib.backends.backend_svg", "mlflow.pyfunc", "pyarrow.parquet"),
    *("mlflow.store.model_registry.sqlalchemy_store", "prefect.utilities.visualization"),
    *("sqlalchemy.dialects.sqlite", "anyio._backends._asyncio", "torchyard.core.report.run_page"),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "alembic.command", "pyarrow.dataset"),
    *("mlflow.store.model_registry.sqlalchemy_workspace_store", "pandas.io.formats.csvs"),
    *("mlflow.utils.search_logged_model_utils", "PIL.WebPImagePlugin", "encodings.cp437"),
    *("torchyard.pipelines.streams", "torchyard.pipelines.worker.serve", "rich._emoji_codes"),
)
AGAIN_SECONDS = 60  # a command that goes on by itself has imported by then


class Standby:
    """Has everything imported, and forks.

    Args:
        folder: of the services.
        lock: descriptor that says that this process lives; no forked one keeps it.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder, self._lock = folder, lock
        self._began = time.time_ns()
        self._given, self._path = dict(os.environ), [*sys.path]
        self._folder_settings = folder_settings(".")
        self._runs: dict[int, socket.socket] = {}
        (folder / SOCKET).unlink(missing_ok=True)  # of one that was killed
        self._set_by_imports = _load()
        self._of_prefect = _prefect_variables()
        self._settings = _prefect_settings()
        self._files = loaded_files()
        self._surroundings = surroundings()
        self._listener = socket.socket(socket.AF_UNIX)
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Fork a process for each command that asks for one, and report how it ended."""
        place = os.open(self._folder, os.O_PATH)
        os.umask(0o077)
        self._listener.bind(f"/proc/self/fd/{place}/{SOCKET}")
        os.close(place)
        self._listener.listen()
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._reap(wake))
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(DECISION_SECONDS)
        try:
            peer = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            if struct.unpack("3i", peer)[1] != os.geteuid():
                raise PermissionError("another user's command")
            connection.sendall(b"\n")
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
            for descriptor in descriptors:  # who reads what the command writes waits for its end
                os.set_inheritable(descriptor, False)
            try:
                with connection.makefile("rb") as lines:
                    request = json.loads(lines.readline())
                here = descriptors[-1]
                if reason := self._differs(request, here):
                    self._refuse(connection, request, here, reason)
                elif not (number := os.fork()):
                    self._become(request, descriptors, connection)
                else:
                    _send(connection, number=number)
                    self._runs[number] = connection
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except (OSError, ValueError, KeyError) as error:
            print(f"a command was not taken over: {error}", file=sys.stderr, flush=True)
            connection.close()

    def _differs(self, request: dict[str, Any], here: int) -> str:
        """Why a command cannot be taken over; empty if it can."""
        around = request["surroundings"]
        if names := [name for name in around if around[name] != self._surroundings.get(name)]:
            return f"another process: {', '.join(names)}"
        # Another beginning of it, such as the folder of the program, has none of what is imported.
        if request["path"][-len(self._path) :] != self._path:
            return "another process: where modules are found"
        mine, theirs = map(self._read_early, (self._given, request["environment"]))
        same = {n: {mine.get(n), self._settings.get(n, mine.get(n))} for n in {*mine, *theirs}}
        if names := sorted(n for n, values in same.items() if theirs.get(n) not in values):
            return f"variables that differ: {', '.join(names)}"
        in_folder = folder_settings(f"/proc/self/fd/{here}")
        both = {*in_folder, *self._folder_settings}
        if names := sorted(n for n in both if in_folder.get(n) != self._folder_settings.get(n)):
            return f"settings of the working folder that differ: {', '.join(names)}"
        for path, before in self._files.items():
            now = stamp(path)
            # What was written while it was imported may have been read before or after.
            if now != before or (now and self._began <= now[0] <= time.time_ns()):
                return f"changed: {path}"
        return ""

    def _read_early(self, environment: dict[str, str]) -> dict[str, str]:
        # What an import would have set anyway is no difference.
        return read_early(self._set_by_imports | start_variables(environment))

    def _refuse(
        self, connection: socket.socket, request: dict[str, Any], here: int, reason: str
    ) -> None:
        _send(connection, refused=reason)
        print(f"a command goes on by itself, {reason}", file=sys.stderr, flush=True)
        if reason.startswith("another process"):
            connection.close()
            return
        (self._folder / SOCKET).unlink()  # nobody is to wait
        connection.settimeout(AGAIN_SECONDS)  # the command's imports come first
        with contextlib.suppress(OSError):
            connection.recv(1)
        connection.close()
        environment = {
            name: value
            for name, value in request["environment"].items()
            # Of one run; or set by an import, and so the same to whoever has not imported yet.
            if not name.startswith("PREFECT__") and self._set_by_imports.get(name) != value
        }
        environment[DAEMON_VARIABLE] = self._given[DAEMON_VARIABLE]
        program = [sys.executable, "-P", "-m", MODULE, str(self._folder), str(self._lock)]
        os.set_inheritable(self._lock, True)
        os.fchdir(here)
        self._listener.close()
        os.execve(sys.executable, program, start_variables(environment))

    def _reap(self, wake: int) -> None:
        os.read(wake, 1024)
        with contextlib.suppress(ChildProcessError):
            while True:
                number, status = os.waitpid(-1, os.WNOHANG)
                if not number:
                    return
                if (connection := self._runs.pop(number, None)) is not None:
                    with contextlib.suppress(OSError):
                        _send(connection, status=os.waitstatus_to_exitcode(status))
                    connection.close()

    def _become(
        self, request: dict[str, Any], descriptors: list[int], connection: socket.socket
    ) -> NoReturn:
        """In the forked process: be what the command would have been."""
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            self._listener.close()
            os.close(self._lock)
            for other in self._runs.values():
                other.close()
            # The command may have given up waiting: then it goes on by itself.
            connection.settimeout(DECISION_SECONDS)
            if connection.recv(2) != b"go":
                os._exit(0)
            _end_with(connection)
            _report_exit(connection)
            *streams, here = descriptors
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
            os.fchdir(here)
            for descriptor in descriptors:
                os.close(descriptor)
            os.umask(request["umask"])
            os.environ.clear()
            os.environ.update(self._set_by_imports | request["environment"])
            sys.argv, sys.path = request["arguments"], request["path"]
            set_title(request["shown"], request["environment"])
            process.fork = ForkedWorker
            if request["program"] == "command":
                quiet_prefect()
                self._run(__main__.command)
                __main__.leave()
            status = self._run(engine.run)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _run(self, program: Callable[[], None]) -> int:
        """Run a program as Python would at its start; returns the exit status."""
        import numpy as np
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        from torchyard.pipelines import display

        tempfile.tempdir = None
        importlib.invalidate_caches()
        np.random.seed()  # Python's own is seeded anew in a forked process
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
        if _prefect_variables() != self._of_prefect:
            refresh_global_settings_context()
            setup_logging()
        display.look_at_terminal()
        status = 0
        try:
            program()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        return status


def _load() -> dict[str, str]:
    """Import what a run, its worker and Prefect's engine do; returns variables they set."""
    quiet_prefect()
    # torch decides, as it is imported, where the headers are that it precompiles.
    tempfile.tempdir = own_folders()["TMPDIR"]
    before = dict(os.environ)
    gc.disable()
    from matplotlib.figure import Figure

    from torchyard.core.report.page import load_templates
    from torchyard.pipelines import cli
    from torchyard.pipelines.worker import stages

    stages.load_compiler()
    stages.load_export()
    for name in IMPORTED:
        importlib.import_module(name)
    for _, load in builtin_sources():
        load()
    cli.commands()
    load_templates()
    figure = Figure()
    figure.text(0, 0, "finds the fonts")
    figure.savefig(io.BytesIO())
    from torchyard.pipelines.flow.recording.start import load_libraries

    load_libraries()
    gc.collect()
    gc.freeze()
    gc.enable()
    tempfile.tempdir = None
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _prefect_variables() -> dict[str, str]:
    """What was set of Prefect; whatever else it reads is the same in a command taken over."""
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


def _prefect_settings() -> dict[str, str]:
    """What the user has set, as a Prefect worker hands it to its runs: also what a file says."""
    from prefect.settings import get_current_settings

    return get_current_settings().to_environment_variables(exclude_unset=True)


def _end_with(connection: socket.socket) -> None:
    """Have the kernel kill this process once the command's is gone, as if it were that."""
    connection.settimeout(None)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:  # it is gone already
        os.kill(os.getpid(), signal.SIGKILL)


def _report_exit(connection: socket.socket) -> None:
    """Have this process tell its exit status: the standby may be gone by then."""
    own, leave = os.getpid(), os._exit

    def report(status: int) -> NoReturn:
        if os.getpid() == own:
            with contextlib.suppress(OSError):
                _send(connection, status=status)
        leave(status)

    os._exit = report


def _send(connection: socket.socket, **message: Any) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    report_pid(int(sys.argv[2]))
    Standby(Path(sys.argv[1]), int(sys.argv[2])).serve()
