"""Preparation: the raw splits of a data set become memory-mapped arrays, once.

The cache folder:

    downloads/                    files that plugins download
    prepared/<digest>/            a prepared data set, read by `PreparedDataset.open`
    prepared/sources/<key>.json   which folder belongs to a plugin and its parameters
    prepared/sources/<key>.lock   held by the process that prepares it
    prepared/<key>.tmp/           its unfinished work
    downloads/prepared-<key>/     what has come of it from the address in TORCHYARD_SHARED

A folder named by its digest is complete: it was written as `<key>.tmp`, synced to the disk and
renamed. The process that holds the lock of a key owns its `.tmp` folder; the next preparation
removes those whose lock is free, because their process has died.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import CACHE, atomic_write, fsync
from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.data.raw import RawData
from torchyard.core.data.remote.prepared import SharedPrepared
from torchyard.core.errors import RunError, UserError
from torchyard.core.formatting import byte_size
from torchyard.core.hosting.neighbours import code_of
from torchyard.core.hosting.params import DatasetParams
from torchyard.core.preparation.manifest import write_manifest
from torchyard.core.preparation.sources import build, fingerprint_of
from torchyard.core.preparation.splits import RawSplits

logger = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CHECKED_BYTES = 1 << 30  # of the arrays that are found: half a second, if they are in memory
DOWNLOADS = "downloads"  # folder of the cache
FORMAT = 2  # of the arrays and of how images are decoded; a change prepares everything again


def find_prepared(
    name: str, params: DatasetParams, cache: Path, reading: ImageReading = READING
) -> PreparedDataset | None:
    """The data set as it was prepared from the same plugin, parameters and source before.

    None where it was not, or is damaged. Cheap: nothing is built, no array is read.
    """
    return _look_up(name, cache / "prepared", _source_key(name, params, cache, reading))


def prepare_dataset(
    name: str,
    params: DatasetParams,
    cache: Path,
    on_progress: Callable[[str, int, int], None],
    reading: ImageReading = READING,
) -> PreparedDataset:
    """Find the prepared data set, or build, check and write it.

    What is found is compared with its checksums: all of it up to 1 GiB, some of it beyond. Where
    machines share prepared data, it is fetched from there, or put there.

    Args:
        name: the plugin's name.
        params: its parameters.
        cache: folder of downloads and prepared data sets; created where it is missing.
        on_progress: called with ("decoding NAME" or "storing NAME", samples done, all samples).
        reading: how image files are read; with `verify` the sources are read again, too, and
            prepared anew where they are not image files.

    Raises:
        UserError: the source is missing or bad, or the cache cannot be written to.
        RunError: the disk is full, the plugin failed, or a decoding process died.
    """
    prepared, key = cache / "prepared", _source_key(name, params, cache, reading)
    most = None if reading.verify else CHECKED_BYTES
    shared = SharedPrepared.chosen(name, key, on_progress)
    if not reading.verify and (found := _undamaged(name, prepared, key, most, logging.DEBUG)):
        if shared:
            _share(shared, prepared, key)
        return found
    needed = 0
    try:
        (prepared / "sources").mkdir(parents=True, exist_ok=True)
        with _work_folder(name, prepared, key) as folder:
            if not reading.verify and (found := _undamaged(name, prepared, key, most)):
                return found  # another process was faster
            _remove_abandoned(prepared, key)
            downloads = cache / DOWNLOADS
            downloads.mkdir(exist_ok=True)
            fetched = downloads / f"prepared-{key}"
            if shared and not reading.verify and (entry := shared.fetch(fetched)):
                _publish(fetched, prepared / entry["folder"])
                shutil.rmtree(fetched, ignore_errors=True)  # where that content was here
                _write_index(prepared, key, entry | {"shared": shared.place})
                if found := _look_up(name, prepared, key):
                    return found
            with _errors_named(name), ExitStack() as on_exit:
                raw = build(params, downloads)
                if not isinstance(raw, RawData):
                    raise UserError(f"build() returns a {type(raw).__name__}, not a RawData")
                if raw.close:
                    on_exit.callback(raw.close)
                splits = RawSplits(raw, reading)
                if (
                    reading.verify
                    and _unchanged(name, splits, prepared, key, on_progress)
                    and (found := _undamaged(name, prepared, key, most))
                ):
                    return found
                needed = splits.bytes_needed
                if shutil.disk_usage(prepared).free < needed:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                broken_list = prepared / "sources" / f"{key}.broken.txt"
                broken_list.unlink(missing_ok=True)
                files = splits.write(
                    folder,
                    broken_list,
                    lambda verb, done, total: on_progress(f"{verb} {name}", done, total),
                )
            target = prepared / write_manifest(folder, name, raw, splits, files)
            _publish(folder, target)
            known = {"folder": target.name, "source": raw.source, "contents": splits.contents}
            _write_index(prepared, key, known)
            if shared:
                _share(shared, prepared, key)
        found = _look_up(name, prepared, key)
    except OSError as error:
        raise _disk_error(error, name, cache, needed) from error
    if found is None:
        raise RunError(f"The prepared data of '{name}' in {prepared} vanished while in use.")
    return found


def _source_key(name: str, params: DatasetParams, cache: Path, reading: ImageReading) -> str:
    """A digest of what the prepared arrays depend on, without reading the data."""
    try:
        code = code_of(Path(inspect.getfile(type(params))))
    except (TypeError, OSError):  # a class of an interactive session has no file
        code = b""
    fingerprint = fingerprint_of(name, params, cache / DOWNLOADS)
    plugin = (name, type(params).__qualname__, params.model_dump_json())
    settings = reading.model_dump(include={*ImageReading.model_fields} - {"verify"})
    parts = [FORMAT, *plugin, settings, fingerprint, hashlib.sha256(code).hexdigest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _index_file(prepared: Path, key: str) -> Path:
    return prepared / "sources" / f"{key}.json"


def _index(prepared: Path, key: str) -> dict[str, Any]:
    """What is known of a source that was prepared; empty where it was not."""
    try:
        entry = json.loads(_index_file(prepared, key).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _write_index(prepared: Path, key: str, entry: dict[str, Any]) -> None:
    with atomic_write(_index_file(prepared, key)) as index:
        index.write(json.dumps(entry).encode())


def _share(shared: SharedPrepared, prepared: Path, key: str) -> None:
    """Put what is prepared to where machines share it, unless that was done."""
    entry = _index(prepared, key)
    if entry.get("shared") != shared.place and shared.put(prepared / entry["folder"], entry):
        _write_index(prepared, key, entry | {"shared": shared.place})


def _look_up(name: str, prepared: Path, key: str) -> PreparedDataset | None:
    entry = _index(prepared, key)
    try:
        found = PreparedDataset.open(prepared / entry["folder"])
        # Equal content from two sources is stored once; each has its own name.
        return replace(found, name=name, source=entry["source"])
    except (OSError, KeyError, TypeError, RunError):
        return None  # missing or damaged: to be prepared


def _undamaged(
    name: str, prepared: Path, key: str, most: int | None, level: int = logging.WARNING
) -> PreparedDataset | None:
    """`_look_up`, with the contents of the arrays compared, up to so many bytes."""
    found = _look_up(name, prepared, key)
    if found is None:
        return None
    try:
        damaged = ", ".join(found.damaged(most))
    except OSError as error:
        damaged = str(error)
    if damaged:
        text = "The prepared data in %s is damaged: %s. It is prepared anew."
        logger.log(level, text, found.folder, damaged)
        return None
    return found


def _unchanged(
    name: str,
    splits: RawSplits,
    prepared: Path,
    key: str,
    on_progress: Callable[[str, int, int], None],
) -> bool:
    """Whether the image files are those that were prepared before: reads all of them."""
    before = _index(prepared, key).get("contents")
    if before is None:
        return False
    for done in splits.images.read_checksums():
        on_progress(f"comparing {name}", done, len(splits.images))
    return bool(splits.contents == before)


@contextmanager
def _work_folder(name: str, prepared: Path, key: str) -> Iterator[Path]:
    """An empty folder that no other process uses; it is removed at the end."""
    lock = FileLock(prepared / "sources" / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for another process that is preparing '%s'.", name)
        lock.acquire()
    folder = prepared / f"{key}.tmp"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_abandoned(prepared: Path, own_key: str) -> None:
    for folder in prepared.glob("*.tmp"):
        if folder.stem != own_key:
            lock = FileLock(prepared / "sources" / f"{folder.stem}.lock", timeout=0)
            with suppress(Timeout), lock:  # its process is running
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Put the data set's name before each problem; a bug of the plugin is a RunError."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"dataset {name}: {problem}" for problem in error.problems) from error
    except RunError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise RunError(
            f"Preparing the data set '{name}' failed: {type(error).__name__}: {error}",
            traceback.format_exc(),
        ) from error


def _publish(folder: Path, target: Path) -> None:
    """Rename the finished folder to its digest, unless the same content is there, undamaged."""
    with FileLock(target.parent / "publish.lock"):
        with suppress(OSError, RunError):
            if not PreparedDataset.open(target).damaged():
                return
        shutil.rmtree(target, ignore_errors=True)  # missing or damaged
        folder.rename(target)
        fsync(target.parent)


def _disk_error(error: OSError, name: str, cache: Path, needed: int) -> Exception:
    if error.errno in DISK_FULL:
        amount = f"; the arrays of '{name}' need {byte_size(needed)}" if needed else ""
        return RunError(
            f"No space is left for preparing '{name}' in {cache}{amount}. "
            f"Free some space, or set {CACHE} to another folder."
        )
    file = f" {error.filename}" if error.filename else ""
    return UserError(f"dataset {name}: cannot prepare in {cache}:{file} {error.strerror or error}")
