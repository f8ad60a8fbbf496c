"""The log of a run: one append-only file of all that is to be recorded, as JSON lines.

The worker process and the one that holds the run's record append to it alike, and what is
written survives the writer's death. `core/tracking/delivery.py` sends the lines to MLflow.
Every line ends with its checksum: one that is damaged is left out, with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchyard.core.training.events import Event, TrainingMetrics, from_plain

logger = logging.getLogger(__name__)

FILE = "log.jsonl"
_CHECKED = re.compile(rb'(.*), "crc32": "([0-9a-f]{8})"}', re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One thing to record.

    Attributes:
        kind: what it is: the name of an event's class, or one that `delivery.py` knows.
        values: plain values, for JSON.
        time: milliseconds since 1970, as MLflow counts.
        end: the byte offset behind it; 0 for a line that is in no file.
    """

    kind: str
    values: dict[str, Any]
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    end: int = 0

    @property
    def event(self) -> Event:
        """The event of the training that the line holds.

        Raises:
            KeyError: it holds something else.
        """
        return from_plain({"kind": self.kind} | self.values)


class RunLog:
    """The file `log.jsonl` of a run's folder; it is made with the first line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._descriptor: int | None = None
        self._damaged: set[int] = set()  # where the lines begin that have been warned of

    def append(self, line: Line) -> None:
        """Write a line in one piece, behind those of any process.

        Raises:
            OSError: it cannot be written whole.
        """
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self.path, flags, 0o666)
            weakref.finalize(self, os.close, self._descriptor)
        plain = {"kind": line.kind, "time": line.time, "values": line.values}
        # The newline comes first: it ends a line that a killed process left unfinished.
        text = b"\n" + _checked(json.dumps(plain).encode())
        if os.write(self._descriptor, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def fsync(self) -> None:
        """Sync the lines to the disk: then they survive a power cut, too."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def read(self, start: int = 0) -> Iterator[Line]:
        """The whole lines from a byte offset on, as they were appended; none without a file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(start)
            for text in file:
                content = text.rstrip(b"\n")  # the newline is the next line's
                first, start = start, start + len(text)
                try:
                    line = Line(**_parse(content), end=first + len(content))
                except (ValueError, TypeError):
                    if not text.endswith(b"\n"):
                        return  # another process is writing it: the next read begins here
                    if content and first not in self._damaged:
                        self._damaged.add(first)
                        logger.warning(
                            "%s: the line at byte %d is cut short or damaged, and left out.",
                            self.path,
                            first,
                        )
                    continue
                yield line


class Offset:
    """A byte offset in a file of its own: that up to which a log has been delivered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have other threads and processes wait until the body has ended."""
        self._path.touch()
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get(self) -> int:
        """The offset; 0 where there is none or it is damaged: to send all again does no harm."""
        try:
            digits, _, checksum = self._path.read_bytes().partition(b" ")
        except FileNotFoundError:
            return 0
        return int(digits) if checksum == b"%08x" % zlib.crc32(digits) else 0

    def set(self, offset: int) -> None:
        """Move it, in one write: no reader sees half of it, and it needs no room on a full disk."""
        digits = b"%020d" % offset
        with self._path.open("r+b", buffering=0) as file:
            file.write(b"%s %08x" % (digits, zlib.crc32(digits)))


def _checked(line: bytes) -> bytes:
    """A JSON object with the checksum of its text as its last value."""
    return b'%s, "crc32": "%08x"}' % (line[:-1], zlib.crc32(line))


def _parse(text: bytes) -> dict[str, Any]:
    """The values of a line; one that was written before there were checksums has none.

    Raises:
        ValueError: it is not as it was written.
    """
    if match := _CHECKED.fullmatch(text):
        text = match[1] + b"}"
        if zlib.crc32(text) != int(match[2], 16):
            raise ValueError("the checksum is another")
    values: dict[str, Any] = json.loads(text)
    return values


def with_metrics_logged(folder: Path, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """An `emit` that appends every training metric to the folder's log before it passes it on.

    So the log has all metrics up to a checkpoint before that checkpoint is written.
    """
    log = RunLog(folder)

    def logged(event: Event) -> None:
        if isinstance(event, TrainingMetrics):
            log.append(Line(type(event).__name__, asdict(event)))
        emit(event)

    return logged
