"""The files of a folder on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torchyard.plugins.datasets.sources.source import LARGEST, SPECIAL, ImageSource, check_size
from torchyard.plugins.datasets.sources.tree import Entry, walk_tree


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path within the folder, entry) of all files and folders, in the order of their names.

    Links are followed, but not to a folder that contains them. Strings, because pathlib's objects
    would take most of the time (`benchmarks/reasons/reading.md`).

    Raises:
        UserError: folders are nested too deeply, or link to one another.
        OSError: a folder cannot be read.
    """
    above = {_identity(each.stat()) for each in folder.resolve().parents}
    return walk_tree(_identity(folder.stat()), _entries, folder, above)


def is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def folder_source(path: Path) -> ImageSource:
    """List the files; pipes, sockets and devices are left out."""
    source = ImageSource({}, set(), partial(read_file, path))
    for name, entry in walk(path):
        if is_regular(entry):
            source.files[name] = name
        elif _is_folder(entry):
            source.folders.add(name)
        elif Path(entry.path).exists():
            source.left_out[name] = SPECIAL
        else:  # a link that leads nowhere: reading it says so
            source.files[name] = name
    return source


def _entries(_: object, folder: os.DirEntry[str] | Path) -> Iterator[Entry]:
    with os.scandir(folder) as unsorted:
        entries = sorted(unsorted, key=lambda entry: entry.name)
    for entry in entries:
        yield entry.name, _identity(entry.stat()) if _is_folder(entry) else None, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def read_file(folder: Path, name: str, most: int = LARGEST) -> bytes:
    """The bytes of a file, `most` of them at most.

    Raises:
        ValueError: it has more than `LARGEST`.
    """
    with (folder / name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size)
        # No more, because some of the system's own files have no size and do not end.
        return file.read(min(size, most))
