"""What is in the cache folder: prepared data, downloads, weights of logged models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from torchyard.core.data.dataset import MANIFEST
from torchyard.core.data.files import sole_use
from torchyard.core.storage.deletion import delete
from torchyard.core.storage.holding import Holding, room

DOWNLOADS = ("downloads", "weights")  # folders of the cache, of files that can be had anew
PREPARED = re.compile(r"[0-9a-f]{16}")  # the beginning of a digest
MODEL = re.compile(r"m-[0-9a-f]{32}")  # the id of a model of MLflow, whose weights it has
_NOT_OURS = (".lock", ".part", ".tmp")  # of a process that is downloading


def cached(cache: Path) -> Iterator[Holding]:
    """The prepared data sets and the downloads in a cache folder.

    What else lies there, as somebody's own folder was named as the cache, is not ours to delete.
    """
    for folder in _entries(cache / "prepared"):
        if PREPARED.fullmatch(folder.name) and (folder / MANIFEST).is_file():
            size, _ = room([folder])
            kept = "" if _is_free(folder) else "a process uses it"
            name = _manifest_name(folder)
            used = (folder / MANIFEST).stat().st_mtime  # `PreparedDataset.open` sets it
            yield Holding("prepared", name, str(folder), (folder,), size, used, kept)
    busy = "data are being prepared" if _preparing(cache) else ""
    for place in DOWNLOADS:
        for entry in _entries(cache / place):
            if entry.suffix not in _NOT_OURS:
                size, newest = room([entry])
                kept = busy or ("" if _is_ours(entry) else "torchyard did not download it")
                yield Holding("downloads", entry.name, str(entry), (entry,), size, newest, kept)


def delete_cached(holding: Holding) -> bool:
    """Delete a prepared data set or a download; False if something uses it by now."""
    [path] = holding.paths
    if holding.kind != "prepared":
        if _preparing(path.parents[1]):
            return False
        delete(path)
        return True
    prepared = path.parent
    # Whoever publishes the same content looks at it under this lock.
    with FileLock(prepared / "publish.lock"), sole_use(path / MANIFEST) as free:
        if free:
            delete(path)
    if not free:
        return False
    for index in (prepared / "sources").glob("*.json"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(index.read_bytes()).get("folder") == path.name:
                index.unlink()
    return True


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return []


def _is_ours(entry: Path) -> bool:
    """Whether a download is one: whoever downloads a file or a folder holds a lock beside it."""
    return MODEL.fullmatch(entry.name) is not None or Path(f"{entry}.lock").is_file()


def _manifest_name(folder: Path) -> str:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return f"{json.loads((folder / MANIFEST).read_bytes())['name']} {folder.name}"
    return folder.name


def _is_free(folder: Path) -> bool:
    with sole_use(folder / MANIFEST) as free:
        return free


def _preparing(cache: Path) -> bool:
    """Whether a process prepares data, of whatever source."""
    for file in (cache / "prepared" / "sources").glob("*.lock"):
        try:
            with FileLock(file, timeout=0):
                pass
        except (Timeout, OSError):
            return True
    return False
