"""What a path is: a folder, a .zip, or a .tar, compressed or not."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from torchyard import UserError
from torchyard.plugins.datasets.sources.folder import folder_source, is_regular, read_file, walk
from torchyard.plugins.datasets.sources.source import ImageSource
from torchyard.plugins.datasets.sources.tar import (
    COMPRESSED,
    Member,
    compressed_tar_source,
    tar_source,
)
from torchyard.plugins.datasets.sources.zip import zip_source

ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # the last is of one in several files
OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a .7z archive",
    b"Rar!": "a .rar archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"\x1f\x9d": "compressed by compress",
}
FIRST_BYTES = 6
BEGINNING = 16 << 20  # bytes of a file in which its header is


def open_source(path: Path, scratch_folder: Path, encoding: str | None = None) -> ImageSource:
    """List a folder or an archive.

    Args:
        path: the folder or archive.
        scratch_folder: a compressed .tar is decompressed to a file there, until the source is
            closed: its members cannot be read in any order.
        encoding: of a .zip's names that do not say that they are UTF-8.

    Raises:
        UserError: the archive is damaged or cut short, or is not an archive.
    """
    if path.is_dir():
        return folder_source(path)
    first = _first_bytes(path)
    if first.startswith(ZIP):
        return zip_source(path, encoding)
    for magic, opener in COMPRESSED.items():
        if first.startswith(magic):
            return compressed_tar_source(path, opener, scratch_folder)
    for magic, other in OTHERS.items():
        if first.startswith(magic):
            raise UserError(f"{path} is {other}, which is not read: unpack it first")
    return tar_source(path, path)


def stream_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads the file) of a folder or an archive, in the archive's own order.

    An archive is read as a stream, so its first image is there at once. Of a file its beginning is
    read, where the header is.
    """
    if path.is_dir():
        for name, entry in walk(path):
            if is_regular(entry):
                yield name, partial(read_file, path, name, BEGINNING)
    elif _first_bytes(path).startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename.replace("\\", "/"), partial(_beginning, archive.open, info)
    else:
        with tarfile.open(path, "r|*", tarinfo=Member) as stream:
            for member in stream:
                if member.isreg():
                    yield member.name, partial(_beginning, stream.extractfile, member)


def _first_bytes(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: it is a pipe, a socket or a device, of which reading may not end.
    """
    if not path.is_file():
        raise UserError(f"{path} is neither a folder nor a file")
    with path.open("rb") as file:
        return file.read(FIRST_BYTES)


def _beginning(opener: Callable[..., IO[bytes] | None], *arguments: object) -> bytes:
    file = opener(*arguments)
    assert file is not None  # None is of folders and the like
    with file:
        return file.read(BEGINNING)
