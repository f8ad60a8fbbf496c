"""The file of a checkpoint, as far as it is read without torch: its digest and its step.

It is what `torch.save` writes, behind that the number of training steps where it is known, and
last the sha256 of all of it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LAST = "last.pt"
PREVIOUS = "previous.pt"  # the one before the last
BEST = "best.pt"
DAMAGED = "damaged.pt"  # what was found damaged, for whoever wants to look into it

_MARK = b"\nsha256 "
_TRAILER = len(_MARK) + 64
_STEP = re.compile(rb"\nstep (\d{12})\Z")
_STEP_LENGTH = 18


class DigestedFile:
    """A file that takes what `torch.save` writes, and its step and digest behind it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        """As of any file."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """As of any file."""
        self._file.flush()

    def end(self, step: int | None) -> None:
        """Write step and digest behind what was written."""
        if step is not None:
            self.write(b"\nstep %012d" % step)
        self._file.write(_MARK + self._digest.hexdigest().encode())


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that is what was written.

    Attributes:
        step: training steps before it; None where the file does not say so.
        digest: sha256, 64 hexadecimal digits.
    """

    step: int | None
    digest: str

    @classmethod
    def read(cls, path: Path) -> CheckpointFile | None:
        """Read a file, all of it; None where there is none, or it is damaged."""
        try:
            with path.open("rb") as file:
                if damage(file):
                    return None
                file.seek(max(0, file.seek(0, 2) - _TRAILER - _STEP_LENGTH))
                content, _, digest = file.read().rpartition(_MARK)
        except OSError:
            return None
        step = _STEP.search(content)
        return cls(int(step[1]) if step else None, digest.decode())


def damage(file: BinaryIO) -> str | None:
    """Why a checkpoint is not what was written, as a clause; None where it is."""
    size = file.seek(0, 2) - _TRAILER
    if size < 0:
        return "it is empty" if size == -_TRAILER else "it is cut short"
    file.seek(size)
    trailer = file.read()
    if not trailer.startswith(_MARK):
        return "it has no digest at its end, so it is cut short or overwritten"
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(min(2**20, size - file.tell())):
        digest.update(chunk)
    if trailer != _MARK + digest.hexdigest().encode():
        return "its digest is not the one that was written"
    return None
