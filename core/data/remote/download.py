"""A copy of data elsewhere, downloaded once: whole and with the right digest, or not there.

A connection that breaks is taken up where it broke, also by the next process: what has come is kept
beside a note of the version that it is of (the size and, where the server tells them, the ETag or
the time of the last change).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from torchyard.core.data.files import atomic_write
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.formatting import byte_size
from torchyard.core.redaction import redacted

logger = logging.getLogger(__name__)

T = TypeVar("T")

BLOCK = 8 << 20  # bytes that are asked for at once, and lost when the connection breaks
CONNECT = (
    4.0  # seconds for a connection: the libraries try twice before they say that there is none
)
TIMEOUT = 10.0  # seconds without a byte
TRIES = 3  # without a byte between them
PAUSE = 1.0  # seconds before another try
NOTE = "source.json"  # in the copy's folder
# What tells one version of a file from another, by the names that the file systems give it.
_VERSION = (
    *("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime"),
    *("Content-MD5", "md5Hash", "generation", "blob_id"),
)


class RemoteCopy:
    """The copy of what an address names, in a folder of downloads.

    Args:
        address: of a file, or of a folder where its kind of address has some.
        downloads: the folder.
    """

    def __init__(self, address: RemoteAddress, downloads: Path) -> None:
        self._address = address
        key = hashlib.sha256(address.source.encode()).hexdigest()[:16]
        self._folder = downloads / f"remote-{key}"
        name = address.source.partition("://")[2].partition("?")[0].rstrip("/").rpartition("/")[2]
        self._path = self._folder / f"data-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[-100:]}"

    def version(self) -> str:
        """What is there now, without downloading it; of what cannot be asked, what is known.

        Raises:
            UserError: there is nothing, or it may not be read.
            UnreachableError: nothing answers, and nothing is known.
        """
        if self._address.digest:
            return self._address.digest
        try:
            return _version(_Remote(self._address.source).files())
        except UnreachableError as error:
            if known := self._note().get("version"):
                logger.warning("%s The copy of it that is here is used.", error)
                return str(known)
            raise

    def fetch(self) -> tuple[Path, str]:
        """Download it, unless that version is here; returns where it is, and its sha256.

        Raises:
            UserError: there is nothing, it may not be read, or its digest is another.
            UnreachableError: nothing answers, or the connection breaks again and again.
            OSError: the disk is full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._folder}.lock"):
            note = self._note()
            here = str(note["sha256"]) if note and self._path.exists() else ""
            if not here or here != self._address.digest:
                try:
                    remote = _Remote(self._address.source)
                    version = _version(files := remote.files())
                except UnreachableError as error:
                    if not here or self._address.digest:
                        raise
                    logger.warning("%s The copy of it that is here is used.", error)
                    version = note["version"]
                if not here or self._address.digest or note["version"] != version:
                    here = self._download(remote, files, version)
            os.utime(self._folder / NOTE)  # `torchyard prune` sees that it is used
            return self._path, here

    def _download(self, remote: _Remote, files: dict[str, dict[str, Any]], version: str) -> str:
        """Download all files into a folder beside, and put it in place of the copy."""
        part = self._folder / "part"
        begun = self._folder / "part.json"
        if not begun.exists() or begun.read_text("utf-8") != version:
            shutil.rmtree(part, ignore_errors=True)
            with atomic_write(begun) as file:
                file.write(version.encode())
        total = sum(info.get("size") or 0 for info in files.values())
        logger.info("Downloading %s (%s).", redacted(self._address.source), byte_size(total))
        sums = {}
        for name, info in files.items():
            path = part / name if name else part / self._path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            remote.download(name, info, path)
            with path.open("rb") as opened:
                sums[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        digest = sums.get("") or _digest_of_folder(sums)
        shown = redacted(self._address.source)
        if _version(_Remote(self._address.source).files()) != version:
            raise UnreachableError(f"{shown} was changed while it was downloaded.")
        if self._address.digest not in ("", digest):
            shutil.rmtree(part)
            raise UserError(
                f"{shown} is not what it should be: its sha256 is {digest}, not "
                f"{self._address.digest}. It was not kept."
            )
        (self._folder / NOTE).unlink(missing_ok=True)
        _replace(part if "" not in sums else part / self._path.name, self._path)
        note = {"address": redacted(self._address), "version": version, "sha256": digest}
        with atomic_write(self._folder / NOTE) as file:
            file.write(json.dumps(note).encode())
        shutil.rmtree(part, ignore_errors=True)
        begun.unlink(missing_ok=True)
        return digest

    def _note(self) -> dict[str, Any]:
        try:
            note = json.loads((self._folder / NOTE).read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) and {"version", "sha256"} <= note.keys() else {}


class _Remote:
    """What an address names, through fsspec."""

    def __init__(self, source: str) -> None:
        import fsspec

        self._shown = redacted(source)
        kind = source.partition("://")[0]
        options: dict[str, Any] = {}
        if kind in ("http", "https"):
            import aiohttp

            # Without a limit on the whole, which a large file needs longer than.
            limits = aiohttp.ClientTimeout(total=None, connect=TIMEOUT, sock_read=TIMEOUT)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
        elif kind == "s3":
            waits = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT}
            options = {"config_kwargs": {**waits, "retries": {"max_attempts": 1}}}
        self._fs, self._path = self._asked(
            lambda: fsspec.core.url_to_fs(source, skip_instance_cache=True, **options)
        )

    def files(self) -> dict[str, dict[str, Any]]:
        """What is known of each file, by its path in the folder; "" where it is one file.

        Raises:
            UserError: there is nothing, or it may not be read.
            UnreachableError: nothing answers.
        """
        info = self._asked(lambda: self._fs.info(self._path))
        if info.get("type") != "directory":
            return {"": info}
        found = self._asked(lambda: self._fs.find(self._path, detail=True))
        root = self._path.rstrip("/") + "/"
        files = {name.removeprefix(root): each for name, each in sorted(found.items())}
        files = {name: each for name, each in files.items() if name and not name.endswith("/")}
        outside = [name for name in files if ".." in name.split("/") or name.startswith("/")]
        if outside or not files:
            why = f"its file '{outside[0]}' leads out of it" if outside else "it is empty"
            raise UserError(f"{self._shown}: {why}")
        return files

    def download(self, name: str, info: dict[str, Any], path: Path) -> None:
        """Download one file, from where an earlier try was broken off.

        Raises:
            UserError: it may not be read.
            UnreachableError: the connection breaks again and again.
            OSError: the disk is full.
        """
        where = f"{self._path.rstrip('/')}/{name}" if name else self._path
        size = info.get("size")
        if size is None or info.get("partial") is False:
            self._stream(where, size, path)
            return
        source, failed = None, 0
        with path.open("ab") as out:
            while (done := out.tell()) < size:
                try:
                    source = source or self._asked(lambda: self._opened(where, size))
                    block = self._asked(partial(_read, source, done, min(BLOCK, size - done)))
                except _NoPartsError:
                    break
                except UnreachableError as error:
                    source, failed = None, failed + 1
                    if failed == TRIES:
                        raise UnreachableError(
                            f"{error} So it was {TRIES} times, after {done:,} of {size:,} bytes: "
                            "they are kept, and the next try goes on from there."
                        ) from error
                    time.sleep(PAUSE)
                else:
                    failed = 0
                    out.write(block)
                    out.flush()
            else:
                return
        self._stream(where, size, path)

    def _opened(self, where: str, size: int) -> Any:
        return self._fs.open(where, "rb", block_size=BLOCK, cache_type="none", size=size)

    def _stream(self, where: str, size: int | None, path: Path) -> None:
        """Download from the beginning: of a server that sends no parts."""
        done = 0

        def copy() -> None:
            nonlocal done
            with self._fs.open(where, "rb", block_size=0) as file, path.open("wb") as out:
                while block := file.read(BLOCK):
                    out.write(block)
                    done += len(block)
            if size is not None and done != size:
                raise ConnectionError(f"the connection broke off after {done:,} of {size:,} bytes")

        self._asked(copy)

    def _asked(self, ask: Callable[[], T]) -> T:
        """What `ask` returns; what the file systems raise becomes one message."""
        try:
            return ask()
        except (UserError, _NoPartsError):
            raise
        except Exception as error:  # each file system has its own
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> Exception:
        """What an error of a file system means; that of this machine's disk as it is."""
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        said = redacted(str(cause).strip() or type(cause).__name__)
        said = said.splitlines()[0][:200].rstrip(".")
        answer = getattr(cause, "response", None)  # of AWS's library
        about = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
        status = getattr(cause, "status", None) or about.get("HTTPStatusCode")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if status in (404, 410) or (cause is error and isinstance(error, FileNotFoundError)):
            return UserError(f"{self._shown}: there is nothing of that name")
        denied = status in (401, 403) or isinstance(error, PermissionError)
        if denied or "credentials" in said.lower():
            return UserError(f"{self._shown} may not be read: {said}")
        return UnreachableError(f"{self._shown} does not answer: {said}.")


class _NoPartsError(Exception):
    """The server sends whole files alone."""


def _read(source: Any, start: int, length: int) -> bytes:
    source.seek(start)
    try:
        block: bytes = source.read(length)
    except ValueError as error:
        if "range requests" in str(error):
            raise _NoPartsError from error
        raise
    if len(block) != length:
        raise ConnectionError(f"{len(block):,} bytes came in place of {length:,}")
    return block


def _version(files: dict[str, dict[str, Any]]) -> str:
    known = {
        name: [info.get("size"), *(str(info[key]) for key in _VERSION if info.get(key))]
        for name, info in files.items()
    }
    return json.dumps(known, sort_keys=True)


def _digest_of_folder(sums: dict[str, str]) -> str:
    """sha256 of what `sha256sum` prints of the files in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _replace(new: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    new.replace(path)
