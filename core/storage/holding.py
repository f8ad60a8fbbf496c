"""A thing that takes room: where it is, how large, how old, and why it must stay, if it must."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torchyard.core.errors import UserError
from torchyard.core.formatting import BYTE_UNITS

Kind = Literal["checkpoints", "prepared", "downloads", "runs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_AGE = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True)
class Holding:
    """What is deleted as a whole, or stays as a whole.

    Attributes:
        kind: of it.
        name: as people know it: a run's name, a data set's, a file's.
        key: a run's id, or the path that it has.
        paths: its files and folders; empty where they are not on this machine.
        size: bytes of them.
        used: when it was last used, in seconds since 1970.
        kept: why it must stay; empty where it may go.
    """

    kind: Kind
    name: str
    key: str
    paths: tuple[Path, ...]
    size: int
    used: float
    kept: str = ""


def chosen(
    holdings: Iterable[Holding],
    now: float,
    *,
    older_than: float | None = None,
    keep: int | None = None,
    down_to: int | None = None,
) -> list[Holding]:
    """What is to go, the longest unused first. Each condition is optional; all that are given hold.

    Args:
        holdings: of any kinds.
        now: seconds since 1970.
        older_than: only what was not used for so many seconds.
        keep: never the newest so many of each kind; what must stay counts.
        down_to: only until all of them, what must stay included, take no more bytes than that.
    """
    everything = sorted(holdings, key=lambda each: (each.used, each.key))
    newest: set[tuple[str, str]] = set()
    for kind in KINDS:
        own = [each for each in everything if each.kind == kind]
        newest |= {(kind, each.key) for each in own[max(0, len(own) - (keep or 0)) :]}
    total = sum(each.size for each in everything)
    going = []
    for each in everything:
        if down_to is not None and total <= down_to:
            break
        too_new = older_than is not None and now - each.used < older_than
        if each.kept or too_new or (each.kind, each.key) in newest:
            continue
        going.append(each)
        total -= each.size
    return going


def room(paths: Sequence[Path]) -> tuple[int, float]:
    """How many bytes files and folders take, and when the newest was written (0: there is none).

    A file with two names counts once; links are not followed.
    """
    size, newest, seen = 0, 0.0, set[tuple[int, int]]()
    stack = list(paths)
    while stack:
        path = stack.pop()
        try:
            found = path.lstat()
            if path.is_dir() and not path.is_symlink():
                stack += (Path(entry.path) for entry in os.scandir(path))
                continue
        except OSError:  # it has just gone, or is somebody else's
            continue
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            size += found.st_size
            newest = max(newest, found.st_mtime)
    return size, newest


def read_age(text: str) -> float:
    """Seconds of an age such as 30d, 12h or 1d12h.

    Raises:
        UserError: it is none.
    """
    parts = re.findall(r"(\d{1,9})([dhms])", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise UserError(f"--older-than: '{text[:30]}' is no age such as 30d, 12h or 1d12h")
    return sum(int(count) * _AGE[unit] for count, unit in parts)


def read_size(text: str) -> int:
    """Bytes of a size such as 500MB or 1.5 GB, in powers of 1000.

    Raises:
        UserError: it is none.
    """
    units = {unit.upper(): 1000**power for power, unit in enumerate(BYTE_UNITS)} | {"B": 1, "": 1}
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in units:
        raise UserError(f"--down-to: '{text[:30]}' is no size such as 500MB, 20GB or 1.5TB")
    return int(float(found[1]) * units[found[2].upper()])
