"""Files that appear complete or not at all, and the folder of what can be made again."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from torchyard.core.errors import RunError, UserError

CACHE = "TORCHYARD_CACHE"  # environment variable
# Bytes of a temporary folder's path, beyond which that of a Unix socket below it is too long.
SHORT = 70


def cache_folder() -> Path:
    """Folder of downloads and prepared data sets: TORCHYARD_CACHE, or the user's cache folder.

    Raises:
        UserError: the user's is not known.
    """
    chosen = os.environ.get(CACHE)
    try:
        return Path(chosen).expanduser() if chosen else user_cache_path("torchyard")
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"The cache folder is not known: {reason}. Set HOME or {CACHE}.") from error


def check_cache() -> None:
    """Find out before any work whether the cache folder can be written.

    Raises:
        UserError: it cannot; the message says why.
    """
    folder = cache_folder()
    check_folder(folder, "cache folder", f" Set {CACHE} to another one.")


def check_folder(folder: Path, what: str, advice: str = "") -> None:
    """Make a folder that is the user's alone, if it is not there, and write to it.

    Args:
        folder: to be written to.
        what: it is, in the message: "cache folder".
        advice: what the message ends with.

    Raises:
        UserError: that cannot be done; the message says why.
    """
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)  # an empty file fits on a full disk
            probe.flush()
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"The {what} {folder} cannot be written: {reason}.{advice}") from error


def make_folder(folder: Path) -> None:
    """Make a folder that is not there, and those around it, so that nobody else can open them.

    Raises:
        OSError: it cannot be made.
    """
    for each in (*reversed(folder.parents), folder):
        if each == folder or not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)


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


@contextmanager
def written(path: Path, what: str) -> Iterator[BinaryIO]:
    """`atomic_write` of a file that a run needs, named by what it holds: "The audit".

    Raises:
        RunError: the disk does not take it.
    """
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise RunError(f"{what} cannot be written to {path}: {error}") from error


def link_or_copy(file: Path, link: Path) -> None:
    """Give a file a second name, or copy it to another file system."""
    try:
        os.link(file, link)
    except OSError:
        shutil.copyfile(file, link)


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


_held: dict[tuple[int, int], int] = {}  # descriptors, by device and inode of their files


def hold(file: Path) -> None:
    """Keep others from deleting what a file stands for until this process ends; note that now.

    Raises:
        OSError: the file is not there, or is being deleted at this moment.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = os.fstat(descriptor)
        if (key := (found.st_dev, found.st_ino)) not in _held:
            with suppress(NotImplementedError):
                _lock(descriptor, fcntl.LOCK_SH)
            if not os.path.samestat(found, file.stat()):
                raise FileNotFoundError(errno.ENOENT, "it was deleted just now", str(file))
            _held[key], descriptor = descriptor, -1
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    with suppress(OSError):  # somebody else's, or on a disk that cannot be written
        os.utime(file)


@contextmanager
def sole_use(file: Path) -> Iterator[bool]:
    """Keep others from holding a file meanwhile; yields False if some process does, or may."""
    try:
        descriptor = os.open(file, os.O_RDWR)  # NFS locks no other one for a sole use
    except OSError:
        yield False
        return
    try:
        try:
            _lock(descriptor, fcntl.LOCK_EX)
            free = True
        except (OSError, NotImplementedError):  # a disk without locks
            free = False
        yield free
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """Take a lock at once.

    Raises:
        BlockingIOError: another process has one that does not go with it.
        NotImplementedError: the disk has no locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise NotImplementedError from error


def private_folder(path: Path) -> Path:
    """Make a folder that nobody else can read or write, or make sure that it is one.

    Raises:
        OSError: it cannot be made, belongs to another user, or stays open to others.
    """
    make_folder(path)
    if path.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            what = "it is open to other users, and its disk cannot change that"
            raise PermissionError(errno.EPERM, what, str(path))
    return path


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have this process and those it starts keep their temporary files in `folder`.

    It is made for the time of the `with`; one that is there already stays.

    Raises:
        OSError: it cannot be made, or belongs to another user.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    own = not folder.exists()
    path, descriptor = str(private_folder(folder)), None
    if len(os.fsencode(path)) > SHORT and Path("/proc/self/fd").exists():
        descriptor = os.open(folder, os.O_RDONLY)
        path = f"/proc/{os.getpid()}/fd/{descriptor}"  # the same folder
    tempfile.tempdir = os.environ["TMPDIR"] = path
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        if descriptor is not None:
            os.close(descriptor)
        if own:
            shutil.rmtree(folder, ignore_errors=True)
