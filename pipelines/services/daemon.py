"""A process that outlives the command that started it, identified by a lock, not by its PID.

Each daemon holds a lock on `<name>.lock` from start to end. The kernel releases the lock with
the process, so a PID that another program has by now is never mistaken for the daemon's. The
first line of the file says what was started, when and by whom; the daemon appends its PID.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from torchyard.core.tracking.provenance import user_name

# Set in the environment of a daemon, and so of every process it starts: the path of its lock.
DAEMON_VARIABLE = "TORCHYARD_DAEMON"
MAX_LOG_BYTES = 1_000_000  # a longer log is emptied at the next start


@dataclass(frozen=True)
class DaemonState:
    """The contents of the lock file of a running daemon.

    Attributes:
        address: where it answers, or the API that a Prefect worker polls.
        started_at: ISO 8601.
        started_by: user@machine.
        pid: None until the process has written it.
        mode: what the daemon reported about itself.
    """

    address: str
    started_at: str
    started_by: str
    pid: int | None = None
    mode: str = ""


class Daemon:
    """A background process with a name, a lock file and a log file.

    Callers of `state` and `start` hold `state_lock(folder)`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.lock = folder / f"{name}.lock"
        self.log = folder / f"{name}.log"

    def state(self) -> DaemonState | None:
        """The state of the living process, or None if there is none."""
        with _opened(self.lock) as lock:
            return None if try_lock(lock) else self._read(lock)

    def last_address(self) -> str:
        """Its address, or the one it had the last time that it ran; empty if it never did."""
        header = self._header()
        return str(header[0]) if header else ""

    def start(
        self,
        command: Callable[[int], Sequence[str]],
        address: str,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            command: makes the command line from the descriptor of the lock, which the new
                process passes to `report_pid`.
            address: see `DaemonState`.
            environment: added to what is inherited.
            pass_fds: further descriptors that the process inherits.
            inherited: the environment that it inherits. By default that of this process.

        Raises:
            BlockingIOError: it is running already.
        """
        with _opened(self.lock) as lock, self.log.open("ab") as log:
            if not try_lock(lock):
                raise BlockingIOError(f"{self.name} is running already")
            if log.tell() > MAX_LOG_BYTES:
                log.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            log.seek(0, os.SEEK_END)
            header = json.dumps([address, now, f"{user_name()}@{platform.node()}", log.tell()])
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{header}\n".encode(), 0)
            variables = {**(environment or {}), DAEMON_VARIABLE: str(self.lock)}
            subprocess.Popen(
                command(lock),
                env={**(inherited or os.environ), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock, *pass_fds],
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
            )

    def processes(self) -> list[psutil.Process]:
        """The daemon and every living process it started, even after its own death."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(DAEMON_VARIABLE) == str(self.lock):
                    found.append(process)
        return found

    def stop(self, timeout: float = 60) -> None:
        """Terminate the daemon and every process it started; kill what is left after `timeout` s.

        Its children get SIGTERM before the daemon, which would send them a second one: a run that
        is terminated twice cannot record why it ended. A child in a session of its own gets none:
        it is the worker process of a run, which stops it and would take its end for a crash.
        """
        state, processes = self.state(), self.processes()
        daemon = [process for process in processes if state and process.pid == state.pid]
        children = [process for process in processes if process not in daemon]
        own_sessions = {process.pid for process in children}
        runs = [process for process in children if _session(process) not in own_sessions]
        for group in (runs, daemon):
            for process in group:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
            psutil.wait_procs(group, timeout=timeout)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def log_tail(self, lines: int = 5) -> list[str]:
        """The last lines of its log, of those it has written since its last start."""
        text = self.log.read_bytes() if self.log.exists() else b""
        header = self._header()
        began = header[3] if len(header) > 3 else 0
        return text[began:].decode("utf-8", "replace").splitlines()[-lines:]

    def _header(self) -> list[Any]:
        """The first line of the lock file; empty if the daemon never ran."""
        with contextlib.suppress(OSError, ValueError):
            header = json.loads(self.lock.read_text("utf-8").partition("\n")[0])
            return header if isinstance(header, list) else []
        return []

    def _read(self, lock: int) -> DaemonState:
        header, *reports = os.pread(lock, 4096, 0).decode().splitlines()
        pid, _, mode = reports[-1].partition(" ") if reports else ("", "", "")
        address, started_at, started_by, *_ = json.loads(header)
        return DaemonState(address, started_at, started_by, int(pid) if pid else None, mode)


@contextlib.contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from starting, stopping or querying the daemons of a folder."""
    with _opened(folder / "start.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def report_pid(lock: int, mode: str = "") -> None:
    """Append the PID and mode of this process to its lock file."""
    os.lseek(lock, 0, os.SEEK_END)
    os.write(lock, f"{os.getpid()} {mode}\n".encode())


def exec_command(program: Sequence[str]) -> Callable[[int], list[str]]:
    """A `command` for `Daemon.start`: reports its PID, then becomes `program` by exec."""
    module = "torchyard.pipelines.services.daemon"
    return lambda lock: [sys.executable, "-P", "-m", module, str(lock), *program]


def open_lock(path: Path) -> int:
    """The descriptor of a lock file; the lock is released with its last descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(descriptor: int) -> bool:
    """Take the lock unless another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_served_by_this_user(port: int) -> bool:
    """Whether a process of this user listens on a port of 127.0.0.1, as far as the system tells."""
    return is_served_by(_own_processes(), port)


def is_served_by(processes: Iterable[psutil.Process], port: int) -> bool:
    """Whether one of the processes listens on a port of 127.0.0.1."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if any(
                each.status == psutil.CONN_LISTEN and each.laddr.port == port
                for each in process.net_connections("tcp")
            ):
                return True
    return False


def _own_processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().effective == os.geteuid():
                yield process


def _session(process: psutil.Process) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(process.pid)
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_lock(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    report_pid(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
