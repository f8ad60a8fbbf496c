"""Sources of image files: a folder, a .zip, a .tar or a compressed .tar.

A source lists its files and reads them in any order, in any process: its reader can be pickled.
No member of an archive is ever unpacked under its own name, and links in it are not followed, so
an archive cannot reach files outside.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from torchyard import UserError
from torchyard.plugins.datasets.paths import ScratchFile

BLOCK = 512
COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


@dataclass
class ImageSource:
    """All files of a folder or an archive.

    Attributes:
        files: arguments of `read`, by file name: the path within the source, with slashes.
        folders: names of all folders that the source lists, empty ones too.
        read: returns the bytes of one file; can be pickled.
        close: to be called after the last read, or None.
    """

    files: dict[str, Any]
    folders: set[str]
    read: Callable[[Any], bytes]
    close: Callable[[], None] | None = None


def open_source(path: Path, scratch_folder: Path) -> ImageSource:
    """List a folder or an archive.

    Args:
        path: the folder or archive.
        scratch_folder: a compressed .tar is decompressed to a file there, until the source is
            closed: its members cannot be read in any order.

    Raises:
        UserError: the archive is damaged or cut short, or is not an archive.
    """
    if path.is_dir():
        return _folder_source(path)
    with path.open("rb") as file:
        start = file.read(BLOCK)
    if start[:2] == b"PK":
        return _zip_source(path)
    for magic, opener in COMPRESSED.items():
        if start.startswith(magic):
            return _compressed_tar_source(path, opener, ScratchFile(scratch_folder))
    return _tar_source(path, path)


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path within the folder, entry) of all files and folders, in the order of their names.

    Links are followed, but not to a folder that contains them. Without pathlib, whose objects
    would take most of the time for 60,000 files.
    """
    yield from _walk(str(folder), "")


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as unsorted:
        entries = sorted(unsorted, key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        if not entry.is_dir():
            yield name, entry
        elif not entry.is_symlink() or not Path(folder).resolve().is_relative_to(
            Path(entry.path).resolve()
        ):
            yield name, entry
            yield from _walk(entry.path, name + "/")


@dataclass(frozen=True)
class FolderReader:
    """Reads the files of a folder by name."""

    folder: Path

    def __call__(self, reference: str) -> bytes:
        """The bytes of one file."""
        return (self.folder / reference).read_bytes()


def _folder_source(path: Path) -> ImageSource:
    source = ImageSource({}, set(), FolderReader(path))
    for name, entry in walk(path):
        if entry.is_dir():
            source.folders.add(name)
        else:
            source.files[name] = name
    return source


@dataclass(frozen=True)
class TarReader:
    """Reads members of an uncompressed .tar by (offset, size)."""

    path: Path

    def __call__(self, reference: tuple[int, int]) -> bytes:
        """The bytes of one member."""
        offset, size = reference
        file = os.open(self.path, os.O_RDONLY)  # half the time of Path.open
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)


def _compressed_tar_source(
    path: Path, opener: Callable[..., Any], scratch: ScratchFile
) -> ImageSource:
    with ExitStack() as on_failure:
        on_failure.callback(scratch.close)
        # Opened outside the "try": a full disk is not the archive's fault.
        with scratch.path.open("wb") as plain, opener(path, "rb") as packed:
            while chunk := _decompressed(path, packed):
                plain.write(chunk)
        source = _tar_source(path, scratch.path)
        on_failure.pop_all()
    source.close = scratch.close
    return source


def _decompressed(path: Path, packed: BinaryIO) -> bytes:
    try:
        return packed.read(1 << 20)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error


def _tar_source(path: Path, plain: Path) -> ImageSource:
    source = ImageSource({}, set(), TarReader(plain))
    if not plain.stat().st_size or not tarfile.is_tarfile(plain):
        raise UserError(f"{path} is neither a folder nor a .zip, .tar or .tar.gz archive")
    try:
        with tarfile.open(plain, "r:") as archive:
            while (member := archive.next()) is not None:
                # Otherwise it keeps all members it has read: 400 MiB for 600,000 files.
                archive.members.clear()  # type: ignore[attr-defined]
                name = _cleaned(member.name)
                if member.isdir():
                    source.folders.add(name)
                elif member.isreg() and not member.issparse() and name:
                    # Of two members with one name, the later one counts, as in tar.
                    source.files[name] = (member.offset_data, member.size)
            if archive.offset + BLOCK > plain.stat().st_size:
                raise tarfile.ReadError("the end-of-archive block is missing")
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    return source


@dataclass(frozen=True)
class ZipReader:
    """Reads the members of a .zip by name."""

    path: Path

    def __call__(self, reference: str) -> bytes:
        """The bytes of one member.

        Raises:
            ValueError: the member is damaged.
        """
        try:
            return _opened(self.path).read(reference)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"damaged in the archive: {error}") from None


@lru_cache(maxsize=1)
def _opened(path: Path) -> zipfile.ZipFile:
    # Once in each process: listing 60,000 files takes half a second.
    return zipfile.ZipFile(path)


def _zip_source(path: Path) -> ImageSource:
    source = ImageSource({}, set(), ZipReader(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    for member in members:
        name = _cleaned(member.filename.replace("\\", "/"))
        if member.is_dir():
            source.folders.add(name)
        elif member.flag_bits & 1:
            raise UserError(f"{path} is encrypted: {name}")
        elif name:
            source.files[name] = member.filename
    return source


def _cleaned(name: str) -> str:
    """A member's name without "./" and extra slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def stream_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads the file) in the archive's own order, read as a stream.

    The first image of a large archive is there at once.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, partial(archive.read, info)
        return
    with tarfile.open(path, "r|*") as stream:
        for member in stream:
            if member.isreg() and (content := stream.extractfile(member)):
                yield member.name, content.read
