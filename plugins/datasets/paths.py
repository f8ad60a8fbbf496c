"""Paths as parameters, checked with the configuration; scratch files."""

from __future__ import annotations

import difflib
import hashlib
import os
import secrets
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from torchyard import RemoteAddress


def not_empty(path: object) -> object:
    """Refuse an empty text, which would be the working folder: a variable that is not set.

    Raises:
        ValueError: it is empty.
    """
    if path == "":
        raise ValueError("is empty; the working folder is '.'")
    return path


def existing(path: Path) -> Path:
    """The absolute path of an existing file or folder.

    Raises:
        ValueError: it does not exist; the message suggests the nearest name in its folder.
    """
    path = path.expanduser().absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{os.fsencode(path)!r} is not UTF-8, and cannot be recorded: rename it"
        ) from None
    if path.exists():
        return path
    message = f"no such file or folder: {path}"
    if path.parent.is_dir():
        siblings = sorted(entry.name for entry in path.parent.iterdir())
        nearest = difflib.get_close_matches(path.name, siblings, n=1)
        if nearest:
            message += f". Did you mean '{path.with_name(nearest[0])}'?"
    raise ValueError(message)


def here_or_elsewhere(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """An existing path, or the address of data elsewhere, in whose place a path is put later.

    Raises:
        ValueError: it does not exist, or no such address is read.
    """
    address = RemoteAddress.parse(value) if isinstance(value, str) else None
    return address or existing(validate(not_empty(value)))


# As `build` sees it, a path: until then it may be a `RemoteAddress`.
ExistingPath = Annotated[
    Path, WrapValidator(here_or_elsewhere), PlainSerializer(lambda value: value)
]


def state_of(paths: Iterable[Path]) -> str:
    """A digest of the files' resolved paths, sizes and modification times."""
    state = hashlib.sha256()
    for path in paths:
        status = path.stat()
        state.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return state.hexdigest()


class ScratchFile:
    """A temporary file, removed by `close` or at exit; if its process dies, by the next one.

    The process holds a lock on a file beside it, which the system releases when the process dies.

    Attributes:
        path: of the file, which is not created here.
    """

    def __init__(self, folder: Path) -> None:
        for lock_path in folder.glob("scratch-*.lock"):
            with suppress(Timeout), FileLock(lock_path, timeout=0):  # in use
                lock_path.with_suffix(".tmp").unlink(missing_ok=True)
                lock_path.unlink(missing_ok=True)
        stem = folder / f"scratch-{secrets.token_hex(8)}"
        self.path = stem.with_suffix(".tmp")
        lock = FileLock(stem.with_suffix(".lock"), thread_local=False)
        lock.acquire()
        self._discard = weakref.finalize(self, _discard, self.path, lock)

    def close(self) -> None:
        """Remove the file."""
        self._discard()


def _discard(path: Path, lock: FileLock) -> None:
    path.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
