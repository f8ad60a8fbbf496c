"""The side of a command that has the standby process do its work, and behaves as if it did."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from torchyard.core.errors import UserError
from torchyard.pipelines.services.prefect_settings import services_folder
from torchyard.pipelines.services.standby.sameness import surroundings

SOCKET = "standby.sock"
HELLO_SECONDS = 2.0  # a standby that is idle needs a few milliseconds, on a busy machine more
DECISION_SECONDS = 10.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def hand_over(program: str) -> int | None:
    """Have the standby of the user's services do what this process was started for.

    Signals are passed on to the process that does it; if this one is killed, that one is, too.

    Args:
        program: "command" for the command line, "engine" for Prefect's of a scheduled run.

    Returns:
        The exit status; None if there is no standby, or it cannot: nothing has begun then.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if sys.platform != "linux" or sys.gettrace() is not None or None in streams:
        return None
    try:
        connection = _connected(services_folder())
    except (OSError, RuntimeError, UserError):  # RuntimeError: there is no home folder
        return None
    with connection, connection.makefile("rb") as answers:
        try:
            answers.readline()
            connection.settimeout(DECISION_SECONDS)
            _send(connection, program)
            answer = json.loads(answers.readline())
        except (OSError, ValueError):
            return None
        if "number" not in answer:
            # It starts anew: once it sees the end of this process, or after this one's imports.
            connection.detach()
            return None
        # From here on the work is the other process's: it begins when it is told to.
        connection.settimeout(None)
        with _forwarding(answer["number"]):
            connection.sendall(b"go")
            return _status(answers)


def _connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    # A socket's address has at most 107 characters.
    place = os.open(folder, os.O_PATH)
    try:
        connection.settimeout(HELLO_SECONDS)
        connection.connect(f"/proc/self/fd/{place}/{SOCKET}")
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.geteuid():
            raise PermissionError(f"{folder}: the standby is another user's")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(place)
    return connection


def _send(connection: socket.socket, program: str) -> None:
    os.umask(umask := os.umask(0o077))
    request = {
        "program": program,
        "arguments": sys.argv,
        "shown": sys.orig_argv,
        "path": sys.path,
        "environment": dict(os.environ),
        "umask": umask,
        "surroundings": surroundings(),
    }
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        socket.send_fds(connection, [b"\n"], [0, 1, 2, here])
    finally:
        os.close(here)
    connection.sendall(json.dumps(request).encode() + b"\n")


@contextlib.contextmanager
def _forwarding(number: int) -> Iterator[None]:
    """Pass signals on to a process, and let it stop and go on with this one."""
    process = os.pidfd_open(number)

    def send(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)

    def forward(number: int, frame: FrameType | None) -> None:
        send(number)

    def suspend(number: int, frame: FrameType | None) -> None:
        send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        send(signal.SIGCONT)

    handlers: dict[signal.Signals, Any] = dict.fromkeys(FORWARDED, forward)
    # A run goes on when its terminal is closed, and it ends with this process.
    handlers |= {signal.SIGTSTP: suspend, signal.SIGHUP: signal.SIG_IGN}
    # What this process ignores, as one does that `nohup` or a script started, stays ignored.
    heeded = {
        each: how for each, how in handlers.items() if signal.getsignal(each) != signal.SIG_IGN
    }
    before = {each: signal.signal(each, how) for each, how in heeded.items()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(process)


def _status(answers: BinaryIO) -> int:
    """Wait for the end of the process; ends as it did."""
    line = answers.readline()
    if not line:  # it and the standby were killed
        return 1
    status = int(json.loads(line)["status"])
    if status < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status
