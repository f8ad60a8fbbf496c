"""The files that a plugin's parameters name: weights, tables. A run records what is in them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

# A data set's larger files are left to the digest of its samples: they take long to read again.
MOST_DATASET_BYTES = 256 << 20


def named_files(params: BaseModel) -> Iterator[tuple[str, Path]]:
    """The files among the values of a plugin's parameters, each with the parameter's name.

    They are the values of type `pathlib.Path` (pydantic's `FilePath`, ...), also within lists,
    mappings and sections. Folders are none, but what does not exist may become one.
    """
    most = MOST_DATASET_BYTES if getattr(params, "kind", "") == "dataset" else math.inf
    for name, path in _paths(dict(params)):
        try:
            size = path.stat().st_size if path.is_file() else 0
        except (OSError, ValueError):  # a name that no file can have
            continue
        if size <= most and not path.is_dir():
            yield name, path


def file_identity(file: Path) -> str:
    """What a run's record has of a file: its sha256 and name; or why it cannot be read."""
    try:
        status = file.stat()
        digest = _digest(os.path.realpath(file), status.st_size, status.st_mtime_ns)
    except OSError as error:
        return f"{error.strerror} ({file.name})"
    return f"sha256:{digest} ({file.name})"


@lru_cache(maxsize=64)
def _digest(file: str, size: int, time: int) -> str:
    """sha256 of a file, computed once while its size and time stay."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _paths(value: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    inner: Any = ()
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, BaseModel):
        inner = dict(value).items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif isinstance(value, set | frozenset):
        inner = enumerate(sorted(each for each in value if isinstance(each, Path)))
    for key, each in inner:
        yield from _paths(each, f"{name}.{key}" if name else str(key))
