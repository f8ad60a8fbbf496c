"""A parameter that names something on the disk, checked before any work begins."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def existing(path: Path) -> Path:
    """The absolute path of something that exists.

    Raises:
        ValueError: nothing is there; the message names the nearest name beside it.
    """
    path = path.expanduser().absolute()
    if path.exists():
        return path
    message = f"no such file or folder: {path}"
    if path.parent.is_dir():
        siblings = sorted(entry.name for entry in path.parent.iterdir())
        nearest = difflib.get_close_matches(path.name, siblings, n=1)
        if nearest:
            message += f". Did you mean '{path.with_name(nearest[0])}'?"
    raise ValueError(message)


ExistingPath = Annotated[Path, AfterValidator(existing)]


def state_of(paths: Iterable[Path]) -> str:
    """A digest of resolved paths, sizes and modification times: changes when a file does."""
    state = hashlib.sha256()
    for path in paths:
        status = path.stat()
        state.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return state.hexdigest()
