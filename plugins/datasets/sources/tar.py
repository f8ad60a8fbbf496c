"""The files of a .tar, which may be compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from torchyard import UserError
from torchyard.plugins.datasets.paths import ScratchFile
from torchyard.plugins.datasets.sources.source import (
    DANGLING,
    SPECIAL,
    ImageSource,
    check_size,
    cleaned,
)

BLOCK = 512
COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


class Member(tarfile.TarInfo):
    """A member whose header may be GNU tar's own.

    There, times may lie where other headers have the beginning of a long name, and folders of an
    incremental archive have a type of their own.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header of 512 bytes."""
        member = super().frombuf(buf, encoding, errors)
        if bytes(buf[257:265]) == b"ustar  \0":
            prefix = bytes(buf[345:500]).partition(b"\0")[0].decode(encoding, errors)
            member.name = member.name.removeprefix(f"{prefix}/") if prefix else member.name
        return member

    def _block(self, count: int) -> int:
        """Round a size up to whole blocks.

        A negative one would lead back to the same header, for ever (CVE-2025-8194).
        """
        if count < 0:
            raise tarfile.ReadError("a member has a negative size")
        return super()._block(count)  # type: ignore[no-any-return,misc]

    def isdir(self) -> bool:
        """Whether it is a folder."""
        return super().isdir() or self.type == b"D"


def compressed_tar_source(path: Path, opener: Callable[..., Any], folder: Path) -> ImageSource:
    """List a compressed .tar, through a decompressed file in `folder` until it is closed.

    Its members cannot be read in any order.

    Raises:
        UserError: it is damaged or cut short.
    """
    with ExitStack() as on_failure:
        scratch = ScratchFile(folder)
        on_failure.callback(scratch.close)
        try:
            with scratch.path.open("wb") as plain, opener(path, "rb") as packed:
                shutil.copyfileobj(packed, plain)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None):  # of the disk, which may be full
                raise
            raise UserError(f"{path} is damaged or cut short: {error}") from error
        source = tar_source(path, scratch.path)
        on_failure.pop_all()
    source.close = scratch.close
    return source


def tar_source(path: Path, plain: Path) -> ImageSource:
    """List a .tar: `path` in messages, decompressed in `plain`.

    Raises:
        UserError: it is damaged or cut short, or is not a .tar.
    """
    source, links = ImageSource({}, set(), partial(read_extent, plain)), dict[str, str]()
    if not plain.stat().st_size or not tarfile.is_tarfile(plain):
        raise UserError(f"{path} is neither a folder nor a .zip, .tar or .tar.gz archive")
    try:
        with tarfile.open(plain, "r:", encoding="utf-8", tarinfo=Member) as archive:
            while (member := archive.next()) is not None:
                # Otherwise it keeps all members it has read in memory.
                archive.members.clear()  # type: ignore[attr-defined]
                _add(source, links, member)
            _check_end(plain, archive.offset)
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    source.settle(links)
    return source


def _add(source: ImageSource, links: dict[str, str], member: tarfile.TarInfo) -> None:
    name = cleaned(member.name)
    if not name:  # "./", the folder that was packed
        return
    if member.isdir():
        source.folders.add(name)
        return
    source.forget(name, links)
    if member.issparse():
        source.files[name] = (member.offset_data, member.size, tuple(member.sparse or ()))
    elif member.isreg():
        source.files[name] = (member.offset_data, member.size)
    elif member.issym():
        links[name] = member.linkname
    elif not member.islnk():
        source.left_out[name] = SPECIAL
    elif (target := cleaned(member.linkname)) in source.files:
        source.files[name] = source.files[target]
    elif target in links:
        links[name] = links[target]
    else:
        source.files[name] = None


def _check_end(plain: Path, offset: int) -> None:
    """Raise ReadError unless zeros, a whole block at least, follow the last member."""
    with plain.open("rb") as file:
        file.seek(offset)
        end = file.read(BLOCK)
        if len(end) < BLOCK:
            raise tarfile.ReadError("the end-of-archive block is missing")
        while end:
            if end.strip(b"\0"):
                raise tarfile.ReadError("there is more behind its last readable member")
            end = file.read(1 << 20)


def read_extent(
    path: Path, extent: tuple[int, int] | tuple[int, int, tuple[Any, ...]] | None
) -> bytes:
    """The bytes of a member of an uncompressed .tar, by its offset and size.

    Of a sparse one also by the offsets and sizes of the pieces that are not only zeros, which
    follow one another in the .tar.
    """
    if extent is None:
        raise ValueError(DANGLING)
    offset, size, *sparse = extent
    check_size(size)
    file = os.open(path, os.O_RDONLY)  # faster than Path.open
    try:
        if not sparse:
            return os.pread(file, size, offset)
        content = bytearray(size)
        for start, length in sparse[0]:
            content[start : start + length] = os.pread(file, length, offset)
            offset += length
        return bytes(content)
    finally:
        os.close(file)
