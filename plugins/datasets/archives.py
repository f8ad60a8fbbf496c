"""Where image files come from: a folder, a .zip, a .tar or a compressed .tar.

A source lists its files and gives the bytes of each at random, from any process: the
readers pickle. No member of an archive is ever unpacked under its own name, and its links
are not followed, so an archive cannot reach outside itself.
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
from functools import lru_cache
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
        files: what `read` takes, by name: the path inside, with slashes.
        folders: names of all folders that are recorded, empty ones too.
        read: gives the bytes of one file; pickles.
        close: to be called when nothing is read any more; None where nothing is to be done.
    """

    files: dict[str, Any]
    folders: set[str]
    read: Callable[[Any], bytes]
    close: Callable[[], None] | None = None


def open_source(path: Path, scratch_folder: Path) -> ImageSource:
    """List a folder or an archive.

    Args:
        path: what to list.
        scratch_folder: where a compressed .tar is decompressed to (one file, removed with
            the source), as its members cannot be found at random.

    Raises:
        UserError: the archive is damaged or cut short, or is no archive.
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
    """(path inside, entry) of all files and folders, in the order of their names.

    Links are followed, as the user made them, but not into a folder that contains them. No
    objects of pathlib, which would take most of the time of walking 60,000 files.
    """
    yield from _walk(str(folder), "")


def _walk(folder: str, inside: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = inside + entry.name
        if not entry.is_dir():
            yield name, entry
        elif not entry.is_symlink() or not Path(folder).resolve().is_relative_to(
            Path(entry.path).resolve()
        ):
            yield name, entry
            yield from _walk(entry.path, name + "/")


@dataclass(frozen=True)
class FolderReader:
    """Reads files by their names in a folder."""

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
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)


def _compressed_tar_source(
    path: Path, opener: Callable[..., Any], scratch: ScratchFile
) -> ImageSource:
    with ExitStack() as on_failure:
        on_failure.callback(scratch.close)
        # Opened outside the "try": a full disk is not the archive's fault.
        with scratch.path.open("wb") as plain, opener(path, "rb") as packed:
            while piece := _decompressed(path, packed):
                plain.write(piece)
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
                # All that it has read, it keeps: of 600,000 files 400 MiB.
                archive.members.clear()  # type: ignore[attr-defined]
                name = _cleaned(member.name)
                if member.isdir():
                    source.folders.add(name)
                elif member.isreg() and not member.issparse() and name:
                    # Of two with one name the later counts, as in tar.
                    source.files[name] = (member.offset_data, member.size)
            if archive.offset + BLOCK > plain.stat().st_size:
                raise tarfile.ReadError("the mark at its end is missing")
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    return source


@dataclass(frozen=True)
class ZipReader:
    """Reads members of a .zip by their names."""

    path: Path

    def __call__(self, reference: str) -> bytes:
        """The bytes of one member.

        Raises:
            ValueError: they are not what was packed.
        """
        try:
            return _opened(self.path).read(reference)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"damaged in the archive: {error}") from None


@lru_cache(maxsize=1)
def _opened(path: Path) -> zipfile.ZipFile:
    # Once a process: the directory of 60,000 files takes half a second to read.
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
    """A member's name without "./" and extra slashes; it is a name only, never a place."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def stream_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads it) of files in an archive's own order, nothing listed first.

    For a look at the first image of a large archive.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, lambda info=info: archive.read(info)  # type: ignore[misc]
        return
    with tarfile.open(path, "r|*") as stream:
        for member in stream:
            if member.isreg():
                yield member.name, lambda member=member: _bytes(stream.extractfile(member))  # type: ignore[misc]


def _bytes(file: Any) -> bytes:
    opened: BinaryIO = file
    return opened.read()
