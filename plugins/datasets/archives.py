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
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torchyard import UserError
from torchyard.plugins.datasets.paths import ScratchFile

BLOCK = 512
ZIP = b"PK"
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
    if _starts(path, ZIP):
        return _zip_source(path)
    for magic, opener in COMPRESSED.items():
        if _starts(path, magic):
            return _compressed_tar_source(path, opener, ScratchFile(scratch_folder))
    return _tar_source(path, path)


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def walk(folder: Path | str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path within the folder, entry) of all files and folders, in the order of their names.

    Links are followed, but not to a folder that contains them. Strings, because pathlib's objects
    would take most of the time (`benchmarks/reasons/reading.md`).

    Args:
        folder: where to start.
        prefix: of all paths.
    """
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
            yield from walk(entry.path, name + "/")


def _read_file(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _folder_source(path: Path) -> ImageSource:
    source = ImageSource({}, set(), partial(_read_file, path))
    for name, entry in walk(path):
        if entry.is_dir():
            source.folders.add(name)
        else:
            source.files[name] = name
    return source


def _read_tar(path: Path, extent: tuple[int, int]) -> bytes:
    """The bytes of a member of an uncompressed .tar, by (offset, size)."""
    offset, size = extent
    file = os.open(path, os.O_RDONLY)  # faster than Path.open
    try:
        return os.pread(file, size, offset)
    finally:
        os.close(file)


def _compressed_tar_source(
    path: Path, opener: Callable[..., Any], scratch: ScratchFile
) -> ImageSource:
    with ExitStack() as on_failure:
        on_failure.callback(scratch.close)
        try:
            with scratch.path.open("wb") as plain, opener(path, "rb") as packed:
                shutil.copyfileobj(packed, plain)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None):  # of the disk, which may be full
                raise
            raise UserError(f"{path} is damaged or cut short: {error}") from error
        source = _tar_source(path, scratch.path)
        on_failure.pop_all()
    source.close = scratch.close
    return source


def _tar_source(path: Path, plain: Path) -> ImageSource:
    source = ImageSource({}, set(), partial(_read_tar, plain))
    if not plain.stat().st_size or not tarfile.is_tarfile(plain):
        raise UserError(f"{path} is neither a folder nor a .zip, .tar or .tar.gz archive")
    try:
        with tarfile.open(plain, "r:") as archive:
            while (member := archive.next()) is not None:
                # Otherwise it keeps all members it has read in memory.
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


def _read_zip(path: Path, name: str) -> bytes:
    try:
        return _opened(path).read(name)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"damaged in the archive: {error}") from None


@lru_cache(maxsize=1)
def _opened(path: Path) -> zipfile.ZipFile:
    # Once in each process, because it lists all files.
    return zipfile.ZipFile(path)


def _zip_source(path: Path) -> ImageSource:
    source = ImageSource({}, set(), partial(_read_zip, path))
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


def stream_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads the file) of a folder or an archive, in the archive's own order.

    An archive is read as a stream, so its first image is there at once.
    """
    if path.is_dir():
        for name, entry in walk(path):
            if entry.is_file():
                yield name, Path(entry.path).read_bytes
    elif _starts(path, ZIP):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, partial(archive.read, info)
    else:
        with tarfile.open(path, "r|*") as stream:
            for member in stream:
                if member.isreg() and (content := stream.extractfile(member)):
                    yield member.name, content.read
