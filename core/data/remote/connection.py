"""What is on another machine: read as connections break, and written."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.redaction import redacted

T = TypeVar("T")

BLOCK = 8 << 20  # bytes that are asked for at once, and lost when the connection breaks
CONNECT = 4.0  # seconds: the libraries try twice before they say that there is no connection
TIMEOUT = 10.0  # seconds without a byte
SLOWEST = 50_000  # bytes a second that an upload must come to
TRIES = 3  # without a byte between them
PAUSE = 1.0  # seconds before another try


class NothingThereError(UserError):
    """There is nothing of that name."""


class Remote:
    """What an address names, a file or a folder, through fsspec.

    Every method raises UserError where it may not be used, and UnreachableError where nothing
    answers.
    """

    def __init__(self, source: str) -> None:
        import fsspec

        self._shown = redacted(source)
        kind = source.partition("://")[0]
        options: dict[str, Any] = {}
        if kind in ("http", "https"):
            import aiohttp

            # Without a limit on the whole, which a large file needs longer than.
            limits = aiohttp.ClientTimeout(total=None, connect=CONNECT, sock_read=TIMEOUT)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
        elif kind == "s3":
            waits = {"connect_timeout": CONNECT, "read_timeout": TIMEOUT}
            options = {"config_kwargs": {**waits, "retries": {"max_attempts": 1}}}
        self._fs, self._path = self._asked(
            lambda: fsspec.core.url_to_fs(source, skip_instance_cache=True, **options)
        )
        if kind == "s3":
            self._fs.retries = 2  # of its own, without telling

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

    def read(self, name: str) -> bytes | None:
        """A small file of the folder; None where there is none."""
        try:
            content: bytes = self._asked(lambda: self._fs.cat_file(f"{self._path}/{name}"))
        except NothingThereError:
            return None
        return content

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder of the folder; none where there is none."""

        def ask() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()
            found: list[dict[str, Any]] = self._fs.ls(f"{self._path}/{folder}", detail=True)
            return found

        try:
            found = self._asked(ask)
        except NothingThereError:
            return []
        return sorted(
            each["name"].rpartition("/")[2] for each in found if each["type"] != "directory"
        )

    def size(self, name: str) -> int | None:
        """How large a file of the folder is; None where there is none."""

        def ask() -> int:
            self._fs.invalidate_cache()
            size: int = self._fs.info(f"{self._path}/{name}")["size"]
            return size

        try:
            return self._asked(ask)
        except NothingThereError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put a small file into the folder, in place of one of that name; tried once."""
        self._put("pipe_file", f"{self._path}/{name}", content, size=len(content))

    def upload(self, file: Path, name: str) -> None:
        """Put a file into the folder, in place of one of that name; again where that breaks."""
        for tried in range(1, TRIES + 1):
            try:
                size = file.stat().st_size
                self._put("put_file", str(file), f"{self._path}/{name}", size=size)
                return
            except UnreachableError:
                if tried == TRIES:
                    raise
                time.sleep(PAUSE)

    def _put(self, method: str, *arguments: str | bytes, size: int) -> None:
        """Put a file with a method of the file system; given up where it takes too long."""
        import fsspec

        if self._fs.async_impl:  # the libraries wait without end for leave to send
            limit = TIMEOUT + size / SLOWEST
            send = getattr(self._fs, f"_{method}")
            self._asked(lambda: fsspec.asyn.sync(self._fs.loop, send, *arguments, timeout=limit))
        else:
            self._asked(lambda: getattr(self._fs, method)(*arguments))

    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there."""
        with suppress(NothingThereError):
            self._asked(lambda: self._fs.rm_file(f"{self._path}/{name}"))

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
            return NothingThereError(f"{self._shown}: there is nothing of that name")
        denied = status in (401, 403) or isinstance(error, PermissionError)
        if denied or "credentials" in said.lower():
            return UserError(f"{self._shown} may not be used: {said}")
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
