"""Files that are there whole or not at all, and the folder of what may be deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

CACHE = "TORCHYARD_CACHE"


def cache_folder() -> Path:
    """Downloads and prepared data sets: TORCHYARD_CACHE, or the user's cache folder."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else user_cache_path("torchyard")


def sweep(folder: Path) -> None:
    """Remove what processes that died left half-written below a folder that is theirs alone."""
    for partial in folder.rglob(".*"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write beside `path`; at the end bring it to the disk and rename it, on an error remove it."""
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
