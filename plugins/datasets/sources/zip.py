"""The files of a .zip."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

from torchyard import UserError
from torchyard.plugins.datasets.sources.names import is_image
from torchyard.plugins.datasets.sources.source import (
    DANGLING,
    SPECIAL,
    ImageSource,
    check_size,
    cleaned,
)

UNIX = 3  # the system that made a member; others may have no links, and "\" between folders
UTF8, ENCRYPTED = 0x800, 1  # flags of a member
WINDOWS_FOLDER = 0x10  # an attribute of a member
UNICODE_PATH = 0x7075  # an extra field: version, CRC of the name, the name in UTF-8
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
LONGEST_LINK = 4096


def zip_source(path: Path, encoding: str | None) -> ImageSource:
    """List a .zip.

    Args:
        path: of the .zip.
        encoding: of names that do not say that they are UTF-8; None: UTF-8 if all of them are.

    Raises:
        UserError: it is damaged or cut short, encrypted, or packed in a way that cannot be read.
    """
    status = path.stat()
    read = partial(_read, path, (status.st_mtime_ns, status.st_size))
    source = ImageSource({}, set(), read, old_names="cp437", says_utf8=True)
    links: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = _names(members, encoding)
            for index, (name, member) in enumerate(zip(names, members, strict=True)):
                kind = stat.S_IFMT(member.external_attr >> 16)
                if name.endswith("/"):
                    source.folders.add(cleaned(name))
                    continue
                if not (name := cleaned(name)):
                    continue
                source.forget(name, links)
                if member.flag_bits & ENCRYPTED:
                    raise UserError(f"{path} is encrypted: {name}")
                if kind == stat.S_IFLNK and member.file_size <= LONGEST_LINK:
                    links[name] = archive.read(member).decode("utf-8", "surrogateescape")
                elif kind in (0, stat.S_IFREG):
                    source.files[name] = index
                else:
                    source.left_out[name] = SPECIAL
    except NotImplementedError as error:  # encrypted wholly, or of a later version
        raise UserError(f"{path} cannot be read: {error}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error
    _check_methods(path, [members[i] for name, i in source.files.items() if is_image(name)])
    source.folders.discard("")
    source.settle(links)
    return source


def _names(members: list[zipfile.ZipInfo], encoding: str | None) -> list[str]:
    """The members' names, with slashes; those of folders end with one."""
    names, old = [], dict[int, bytes]()
    for index, member in enumerate(members):
        name = member.orig_filename
        if not member.flag_bits & UTF8 and not name.isascii():
            # So it is decoded where nothing is known of it.
            old[index] = name.encode("cp437")
            if in_utf8 := _unicode_path(member, old[index]):
                name = in_utf8
                del old[index]
        names.append(name.partition("\0")[0])
    is_utf8 = encoding is None and all(map(_is_utf8, old.values()))
    for index, raw in old.items():
        # All of them: a name in another encoding can be UTF-8 by chance.
        names[index] = raw.decode("utf-8" if is_utf8 else "ascii", "surrogateescape")
    windows = not any("/" in name for name in names)  # some of its programs write "\"
    for index, member in enumerate(members):
        if windows or member.create_system != UNIX:
            names[index] = names[index].replace("\\", "/")
        if stat.S_ISDIR(member.external_attr >> 16) or member.external_attr & WINDOWS_FOLDER:
            names[index] += "/"
    return names


def _unicode_path(member: zipfile.ZipInfo, name: bytes) -> str:
    """The name in the extra field that old programs did not know; "" if it has none."""
    left = member.extra
    while len(left) >= 4:
        kind, size = struct.unpack_from("<HH", left)
        field, left = left[4 : 4 + size], left[4 + size :]
        if kind == UNICODE_PATH and field[1:5] == struct.pack("<I", zlib.crc32(name)):
            return field[5:].decode("utf-8", "surrogateescape")
    return ""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_methods(path: Path, images: list[zipfile.ZipInfo]) -> None:
    unknown = Counter(each.compress_type for each in images if each.compress_type not in METHODS)
    if unknown:
        methods = (zipfile.compressor_names.get(each, each) for each in sorted(unknown))  # type: ignore[attr-defined]
        raise UserError(
            f"{path}: {sum(unknown.values())} images are compressed by a method that Python cannot "
            f"read ({', '.join(map(str, methods))}): unpack it, or pack it anew with 'deflate'"
        )


def _read(path: Path, state: tuple[int, int], index: int | None) -> bytes:
    if index is None:
        raise ValueError(DANGLING)
    archive = _opened(path, state)
    member = archive.infolist()[index]
    check_size(member.file_size)
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"damaged in the archive: {error}") from None


@lru_cache(maxsize=1)
def _opened(path: Path, state: tuple[int, int]) -> zipfile.ZipFile:
    # Once in each process and state of the file, because it lists all members.
    return zipfile.ZipFile(path)
