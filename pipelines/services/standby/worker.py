"""A worker process that is forked from one that has torch imported: nothing is left to import."""

from __future__ import annotations

import logging
import os
import signal
import stat
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, NoReturn

from torchyard.pipelines.services.standby.title import set_title


class ForkedWorker:
    """The process, as its parent sees it: what `subprocess.Popen` is for one that is executed.

    Args:
        command: shown as its command line.
        environment: of the process.
        messages: the descriptor that it writes messages to.
    """

    def __init__(self, command: list[str], environment: dict[str, str], messages: int) -> None:
        read_requests, requests = os.pipe()
        output, write_output = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(requests)
            os.close(output)
            _serve(command, environment, messages, read_requests, write_output)
        os.close(read_requests)
        os.close(write_output)
        self.stdin: IO[str] = os.fdopen(requests, "w", encoding="utf-8")
        self.stdout: IO[str] = os.fdopen(output, encoding="utf-8", errors="replace")
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it lives."""
        return self._waited(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end."""
        status = self._waited(0)
        assert status is not None
        return status

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _waited(self, options: int) -> int | None:
        if self._status is None:
            number, status = os.waitpid(self.pid, options)
            if number:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


def _serve(
    command: list[str],
    environment: dict[str, str],
    messages: int,
    requests: int,
    output: int,
) -> NoReturn:
    """Be what the command would start."""
    try:
        os.setsid()
        for descriptor, stream in ((requests, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, stream)
        for descriptor in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
            # The parent's end is seen at the other ends of its own.
            if descriptor > 2 and descriptor != messages and _is_channel(descriptor):
                os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        set_title(command, environment)
        tempfile.tempdir = None
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (
            open(number, "w", buffering, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
            for number, buffering in ((1, -1), (2, 1))
        )
        # Those of Prefect, and of the command line: what a worker prints goes to its parent.
        logging.setLogRecordFactory(logging.LogRecord)
        logging.root.handlers.clear()
        from torchyard.pipelines.worker.serve import serve

        serve(os.fdopen(messages, "w", encoding="utf-8"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _is_channel(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:  # of the list itself
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
