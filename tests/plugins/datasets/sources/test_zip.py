"""What .zip files hold that Windows, macOS and others make."""

from __future__ import annotations

import os
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.plugins.datasets.image_files import FLAT, contents, notes, pack, png, problems, tree

LINK, PIPE = 0o120777 << 16, 0o010644 << 16  # external attributes


class OldMember(zipfile.ZipInfo):
    """A member of a program that knows no UTF-8: the bytes of its name are of code page 437."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        return self.filename.encode("cp437"), self.flag_bits


def old_zip(path: Path, *names: str, encoding: str) -> Path:
    """A .zip of images under names in an encoding, which it does not say."""
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(OldMember(name.encode(encoding).decode("cp437")), png())
    return path


def files(*classes: str) -> list[str]:
    return [f"{label}/{number}.png" for label in classes for number in range(2)]


def test_a_zip_with_links_is_the_folder(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos", *FLAT)
    (folder / "dog/link.png").symlink_to("../cat/1.png")
    (folder / "hound").symlink_to("dog")
    plain = contents(folder, tmp_path)
    assert plain[0] == ["cat", "dog", "hound"]
    subprocess.run(["zip", "-qry", "a.zip", "photos"], cwd=tmp_path, check=True)
    subprocess.run(["zip", "-qr", tmp_path / "b.zip", "."], cwd=folder, check=True)
    assert contents(tmp_path / "a.zip", tmp_path) == plain
    assert contents(tmp_path / "b.zip", tmp_path) == plain


@pytest.mark.parametrize("system", [0, 3, 10])
def test_a_zip_with_backslashes_is_the_folder(tmp_path: Path, system: int) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("", *FLAT):
            member = zipfile.ZipInfo(f"photos/{name}".replace("/", "\\"))
            member.create_system = system
            packed.writestr(member, (folder / name).read_bytes() if name else b"")
    assert contents(path, tmp_path) == contents(folder, tmp_path)
    # Elsewhere it is a character like others.
    odd = tree(tmp_path / "odd", *files("a\\b", "c"))
    assert contents(pack(odd, tmp_path / "odd.zip"), tmp_path) == contents(odd, tmp_path)


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    path = pack(tree(tmp_path / "old", *FLAT), tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as packed:
        packed.NameToInfo.clear()  # or it warns of them
        for name in FLAT:
            packed.write(folder / name, name)
    assert contents(path, tmp_path) == contents(folder, tmp_path)
    [note] = notes(path)
    assert note.startswith("10 files are replaced by later ones of the same name in the archive: ")
    assert note.endswith("cat/4.png, and 5 more")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    path = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as packed:
        for name, attributes, content in (
            ("cat/out.png", LINK, "/etc/passwd"),
            ("cat/up.png", LINK, "../../../x"),
            ("cat/pipe.png", PIPE, ""),
        ):
            member = zipfile.ZipInfo(name)
            member.external_attr = attributes
            packed.writestr(member, content)
    assert notes(path) == [
        "1 of 13 files are not images of a class and are left out: "
        "1 special (a pipe, socket or device); in cat 1"
    ]
    assert problems(path, image_size=8)[:2] == [
        f"{path}/cat/{name}.png: a link that leads nowhere, or out of the archive"
        for name in ("out", "up")
    ]


@pytest.mark.parametrize(
    ("encoding", "classes"),
    [
        ("gbk", ["猫", "狗", "老虎"]),
        ("gbk", ["T恤", "鞋子"]),
        ("cp932", ["ねこ", "犬", "トラ"]),
        ("big5", ["貓", "老虎", "獅子"]),
        ("cp866", ["кошка", "собака", "Лев"]),
        ("cp437", ["bär", "café", "Äpfel"]),
        ("cp437", ["Bären", "Hühner"]),
        ("cp1252", ["Bären", "Hühner", "cœurs"]),
        ("cp850", ["coração", "pássaro"]),
        ("cp932", ["ネコ", "カメラ"]),
        ("gbk", ["cat马", "IMG女", "花卉"]),
    ],
)
def test_names_in_an_old_encoding_are_guessed_with_a_warning(
    tmp_path: Path, encoding: str, classes: list[str]
) -> None:
    path = old_zip(tmp_path / "a.zip", *files(*classes), encoding=encoding)
    assert contents(path, tmp_path)[0] == sorted(classes)
    [note] = notes(path)
    assert f"names are not UTF-8; they are read as {encoding}, such as '" in note
    assert "set dataset.encoding if that is wrong" in note
    assert contents(path, tmp_path, encoding=encoding)[0] == sorted(classes)
    assert notes(path, encoding=encoding) == []
    [problem] = problems(old_zip(path, *files("b", "ÿÿ"), encoding="latin-1"), encoding="gbk")
    assert "the name b'\\xff\\xff' is not in the encoding 'gbk'" in problem


def test_the_setting_counts_even_for_names_that_are_utf8_by_chance(tmp_path: Path) -> None:
    path = old_zip(tmp_path / "a.zip", *files("b", "模"), encoding="gbk")
    assert contents(path, tmp_path)[0] == ["b", "ģ"]
    assert contents(path, tmp_path, encoding="gbk")[0] == ["b", "模"]


def test_utf8_without_the_flag_and_in_the_extra_field(tmp_path: Path) -> None:
    classes = ["café", "thé"]
    path = old_zip(tmp_path / "mac.zip", *files(*classes), encoding="utf-8")
    assert contents(path, tmp_path)[0] == classes
    assert notes(path) == []
    path = tmp_path / "extra.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in files(*classes):
            member, utf8 = OldMember(name), name.encode()
            checksum = zlib.crc32(name.encode("cp437"))
            member.extra = struct.pack("<HHBI", 0x7075, 5 + len(utf8), 1, checksum) + utf8
            packed.writestr(member, png())
    assert contents(path, tmp_path)[0] == classes
    assert notes(path) == []


def test_a_method_that_python_cannot_read(tmp_path: Path) -> None:
    path = pack(tree(tmp_path / "i", *FLAT, "cat/notes.txt"), tmp_path / "a.zip", shuffle=False)
    content = bytearray(path.read_bytes())
    for signature, method, name in ((b"PK\x01\x02", 10, 46), (b"PK\x03\x04", 8, 30)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            if content.startswith(b"dog/", start + name) and content[start + method]:
                content[start + method] = 9
    path.write_bytes(content)
    assert problems(path) == [
        f"{path}: 5 images are compressed by a method that Python cannot read (deflate64): "
        "unpack it, or pack it anew with 'deflate'"
    ]


def test_another_archive_at_the_same_path_is_read_anew(tmp_path: Path) -> None:
    path = pack(tree(tmp_path / "one", *FLAT), tmp_path / "a.zip")
    first = contents(path, tmp_path)
    path = pack(tree(tmp_path / "two", *FLAT, height=7), tmp_path / "a.zip")
    os.utime(path, (1, 1))
    assert contents(path, tmp_path) == contents(tmp_path / "two", tmp_path) != first
