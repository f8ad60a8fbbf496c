"""A process that outlives the command that started it, found by a lock and not by its number.

Each piece has a file `<name>.lock` that its process holds locked from birth to death: the kernel
drops the lock with the process, so a number that another program has by now is never believed.
The file's first line says what was started, by whom and when; the process itself adds its number.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from torchyard.core.tracking.provenance import user_name

MARK = "TORCHYARD_PIECE"  # in the environment of a piece and of all that it starts: its lock
LOG_BYTES = 1_000_000  # a longer log is begun anew at the next start


@dataclass(frozen=True)
class Facts:
    """What the books say of a piece that lives.

    Attributes:
        address: where it answers, or what it works for.
        since: when it was started, ISO 8601.
        by: the user and machine that started it.
        pid: its number; None in the first moments.
        state: what it says of itself.
    """

    address: str
    since: str
    by: str
    pid: int | None = None
    state: str = ""


class Piece:
    """One process of a yard, under its name.

    Whoever asks or starts holds `books(folder)` meanwhile.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.lock = folder / f"{name}.lock"
        self.log = folder / f"{name}.log"

    def found(self) -> Facts | None:
        """What is known of the living process, or None if there is none."""
        with _opened(self.lock) as life:
            return None if try_lock(life) else self._read(life)

    def start(
        self,
        command: Callable[[int], Sequence[str]],
        address: str,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it; there must be none.

        Args:
            command: given the descriptor of the lock, which the process is to `announce`.
            address: for the books.
            environment: on top of this process's own.
            pass_fds: further descriptors it is to have.
        """
        with _opened(self.lock) as life, self.log.open("ab") as log:
            if not try_lock(life):
                raise BlockingIOError(f"{self.name} is there")
            if log.tell() > LOG_BYTES:
                log.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            first = json.dumps([address, now, f"{user_name()}@{platform.node()}"])
            os.ftruncate(life, 0)
            os.pwrite(life, f"{first}\n".encode(), 0)
            subprocess.Popen(
                command(life),
                env={**os.environ, **(environment or {}), MARK: str(self.lock)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[life, *pass_fds],
                start_new_session=True,  # Ctrl-C in the terminal is not meant for it
            )

    def members(self) -> list[psutil.Process]:
        """Its process, and whatever it started that still lives, also after its death."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.lock):
                    found.append(process)
        return found

    def stop(self, seconds: float = 60) -> None:
        """End it and all it started: asked first, killed after so many seconds.

        What it started is asked before itself, which would ask again: a run that is terminated
        twice does not get to say why it ended. A process in a session that another of them leads
        is not asked: a run ends its trainer by itself, and would take it for broken.
        """
        facts, members = self.found(), self.members()
        main = [process for process in members if facts and process.pid == facts.pid]
        sessions = {process.pid for process in members} - {process.pid for process in main}
        started = [process for process in members if _session(process) not in sessions]
        for asked in ([process for process in started if process not in main], main):
            for process in asked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
            psutil.wait_procs(asked, timeout=seconds)
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def last_words(self, lines: int = 5) -> list[str]:
        """The end of its log."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return text.splitlines()[-lines:]

    def _read(self, life: int) -> Facts:
        first, *said = os.pread(life, 4096, 0).decode().splitlines()
        pid, _, state = said[-1].partition(" ") if said else ("", "", "")
        address, since, by = json.loads(first)
        return Facts(address, since, by, int(pid) if pid else None, state)


@contextlib.contextmanager
def books(folder: Path) -> Iterator[None]:
    """Nobody else starts, ends or asks for a piece meanwhile."""
    with _opened(folder / "start.lock") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        yield


def announce(life: int, state: str = "") -> None:
    """Tell the books, in a new process, the number and the state of this process."""
    os.lseek(life, 0, os.SEEK_END)
    os.write(life, f"{os.getpid()} {state}\n".encode())


def foreign(command: Sequence[str]) -> Callable[[int], list[str]]:
    """A `command` for `Piece.start` that announces itself and then becomes that program."""
    return lambda life: [
        sys.executable,
        "-P",
        "-m",
        "torchyard.pipelines.services.daemon",
        str(life),
        *command,
    ]


def open_lock(path: Path) -> int:
    """The descriptor of a lock file; the lock goes with the last descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(descriptor: int) -> bool:
    """Take the lock unless another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    announce(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
