"""A temporary file that no killed process leaves behind for good."""

from __future__ import annotations

import secrets
import weakref
from pathlib import Path

from filelock import FileLock, Timeout


class ScratchFile:
    """A temporary file, removed by `close`, at exit, or by a later one if its process dies.

    The lock beside it, which the system frees when its holder dies, tells who lives.

    Attributes:
        path: of the file, which is not made here.
    """

    def __init__(self, folder: Path) -> None:
        for lock_path in folder.glob("scratch-*.lock"):
            _remove_abandoned(lock_path)
        stem = folder / f"scratch-{secrets.token_hex(8)}"
        self.path = stem.with_suffix(".tmp")
        lock = FileLock(stem.with_suffix(".lock"), thread_local=False)
        lock.acquire()
        self._discard = weakref.finalize(self, _discard, self.path, lock)

    def close(self) -> None:
        """Remove the file."""
        self._discard()


def _remove_abandoned(lock_path: Path) -> None:
    try:
        with FileLock(lock_path, timeout=0):
            lock_path.with_suffix(".tmp").unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
    except Timeout:
        pass  # in use


def _discard(path: Path, lock: FileLock) -> None:
    path.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
