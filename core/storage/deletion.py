"""Deleting files so that nobody finds a part of them: under another name first."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torchyard.core.storage.holding import room

DOOMED = ".pruned-"  # how the name begins of what is being deleted


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there.

    Raises:
        OSError: it cannot be renamed.
    """
    doomed = path.with_name(f"{DOOMED}{path.name}")
    _remove(doomed)
    with suppress(FileNotFoundError):
        path.replace(doomed)
    _remove(doomed)


def finish(folders: Iterable[Path]) -> int:
    """Delete what deletions that were killed have left in folders; returns how many bytes."""
    left = [entry for folder in folders for entry in folder.glob(f"{DOOMED}*")]
    size, _ = room(left)
    for entry in left:
        _remove(entry)
    return size


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
