"""Files that appear complete or not at all, and the folder of what can be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

CACHE = "TORCHYARD_CACHE"  # environment variable


def cache_folder() -> Path:
    """Folder of downloads and prepared data sets: TORCHYARD_CACHE, or the user's cache folder."""
    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else user_cache_path("torchyard")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden file beside `path` that replaces it at the end, on disk and complete.

    On an error the hidden file is removed and `path` stays as it was.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what `atomic_write` left below a folder when its process was killed.

    Only where no process is writing: every hidden file and folder is removed.
    """
    for partial in folder.rglob(".*"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
