"""What .tar files of whatever flavour hold."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.plugins.datasets.image_files import FLAT, contents, notes, pack, problems, tree
from torchyard import UserError
from torchyard.plugins.datasets.image_folder import ImageFolder
from torchyard.plugins.datasets.sources import source as source_room
from torchyard.plugins.datasets.sources import tree as tree_room
from torchyard.plugins.datasets.sources.formats import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders with links of all kinds."""
    folder = tree(tmp_path / "photos", *FLAT)
    os.link(folder / "cat/0.png", folder / "cat/again.png")
    (folder / "dog/link.png").symlink_to("../cat/1.png")
    (folder / "dog/chain.png").symlink_to("link.png")
    (folder / "hound").symlink_to("dog")
    (folder / "dog/round").symlink_to("..")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["tar", "czf", "a.tgz", "-C", "photos", "."],
        ["tar", "cf", "a.tar", "photos"],
        ["tar", "--format=v7", "-cf", "a.tar", "-C", "photos", "."],
        ["tar", "--format=ustar", "-cf", "a.tar", "photos"],
        ["tar", "--format=posix", "-cjf", "a.tar.bz2", "photos"],
        [
            "tar",
            "--hard-dereference",
            "--dereference",
            "--exclude=round",
            "-cJf",
            "a.txz",
            "photos",
        ],
        ["tar", "-g", "state", "-cf", "a.tar", "photos"],
    ],
    ids=lambda command: " ".join(command[1:3]),
)
def test_an_archive_of_tar_is_the_folder(tmp_path: Path, folder: Path, command: list[str]) -> None:
    plain = contents(folder, tmp_path)
    assert plain[0] == ["cat", "dog", "hound"]
    subprocess.run(command, cwd=tmp_path, check=True)
    [archive] = tmp_path.glob("a.t*")
    assert contents(archive, tmp_path / "scratch") == plain
    assert notes(archive) == notes(folder) == []


def test_an_archive_of_shutil_is_the_folder(tmp_path: Path, folder: Path) -> None:
    plain = contents(folder, tmp_path)
    for format in ("tar", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "a"), format, folder)
        assert contents(Path(archive), tmp_path / "scratch") == plain


def test_a_sparse_file_is_whole(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    with (folder / "cat/hole.png").open("wb") as file:
        file.write(b"begin")
        file.seek(300_000)
        file.write(b"middle")
        file.truncate(900_000)
    for format in ("gnu", "posix"):
        archive = tmp_path / f"{format}.tar"
        command = ["tar", f"--format={format}", "-S", "-cf", archive, "-C", folder, "."]
        subprocess.run(command, check=True)
        assert archive.stat().st_size < 500_000
        assert contents(archive, tmp_path / "scratch") == contents(folder, tmp_path / "scratch")


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    archive = tmp_path / "a.tar"
    pack(folder, archive, top="./")
    tree(folder, "cat/1.png", "dog/2.png")  # other pictures
    (folder / "dog/3.png").unlink()
    (folder / "dog/3.png").symlink_to("2.png")
    (folder / "cat/4.png").unlink()
    os.link(folder / "cat/1.png", folder / "cat/4.png")
    with tarfile.open(archive, "a") as packed:
        for name in ("cat/1.png", "dog/2.png", "dog/3.png", "cat/4.png"):
            packed.add(folder / name, name)
    assert contents(archive, tmp_path / "scratch") == contents(folder, tmp_path / "scratch")
    assert notes(archive) == [
        "4 files are replaced by later ones of the same name in the archive: cat/1.png, "
        "cat/4.png, dog/2.png, dog/3.png"
    ]


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def test_links_that_lead_nowhere_cannot_be_read_and_what_is_no_file_is_named(
    tmp_path: Path,
) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tar")
    with tarfile.open(archive, "a") as packed:
        for name, target in (("out", "/etc/passwd"), ("up", "../../x.png"), ("to", "none.png")):
            packed.addfile(member(f"cat/{name}.png", tarfile.SYMTYPE, target))
        packed.addfile(member("dog/a.png", tarfile.SYMTYPE, "b.png"))
        packed.addfile(member("dog/b.png", tarfile.SYMTYPE, "a.png"))
        packed.addfile(member("dog/hard.png", tarfile.LNKTYPE, "dog/none.png"))
        packed.addfile(member("dog/readme.txt", tarfile.SYMTYPE, "none.txt"))
        packed.addfile(member("dog/pipe.png", tarfile.FIFOTYPE))
        packed.addfile(member("dog/device.png", tarfile.CHRTYPE))
    assert notes(archive) == [
        "3 of 19 files are not images of a class and are left out: 2 special (a pipe, socket or "
        "device), 1 .txt; in dog 3"
    ]
    # As in a folder: they would be missed in training.
    *found, advice = problems(archive, image_size=8)
    names = ["cat/out", "cat/to", "cat/up", "dog/a", "dog/b", "dog/hard"]
    assert sorted(found) == [
        f"{archive}/{name}.png: a link that leads nowhere, or out of the archive" for name in names
    ]
    assert "dataset.broken=skip" in advice


def test_class_folders_that_are_links_out_of_the_archive_are_named(tmp_path: Path) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tar")
    with tarfile.open(archive, "a") as packed:
        packed.addfile(member("bird", tarfile.SYMTYPE, "../birds"))
    [note] = notes(archive)
    assert "left out: 1 links that lead nowhere, or out of the archive; in the top folder 1" in note
    with tarfile.open(archive, "w") as packed:
        packed.addfile(member("bird", tarfile.SYMTYPE, "../birds"))
    [problem] = problems(archive)
    assert problem.endswith("It holds 1 links that lead nowhere, or out of the archive")


def test_members_that_lead_out_of_the_archive_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    plain = contents(folder, tmp_path)
    for archive in (pack(folder, tmp_path / "a.tar"), pack(folder, tmp_path / "a.zip")):
        odd = ("/etc/1.png", "/etc/", "cat/../../1.png", "//cat/1.png")
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "a") as packed:
                for name in odd:
                    packed.writestr(name, b"")
        else:
            with tarfile.open(archive, "a") as packed_tar:
                for name in odd:
                    kind = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                    packed_tar.addfile(member(name, kind))
        assert contents(archive, tmp_path) == plain
        assert notes(archive) == [
            "3 of 13 files are not images of a class and are left out: 3 outside (an absolute "
            "path, or one with '..'); in /cat 1, /etc 1, cat/../.. 1"
        ]


def test_an_archive_of_absolute_paths_is_what_it_unpacks_to(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    os.link(folder / "cat/0.png", folder / "cat/again.png")
    (folder / "dog/link.png").symlink_to("../cat/1.png")
    subprocess.run(["tar", "-P", "-cf", tmp_path / "a.tar", folder], check=True)
    assert contents(tmp_path / "a.tar", tmp_path) == contents(folder, tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for file in sorted(folder.rglob("*.png")):
            info = zipfile.ZipInfo(f"/photos/{file.relative_to(folder)}")
            packed.writestr(info, file.read_bytes())
    assert contents(tmp_path / "a.zip", tmp_path) == contents(folder, tmp_path)


def test_folders_that_link_to_one_another_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    for name in "cat", "dog":
        for other in "cat", "dog":
            (folder / name / f"to {other}").symlink_to(f"../{other}")
    archive = pack(folder, tmp_path / "a.tar")
    found = contents(folder, tmp_path / "scratch")
    assert [label for label, _ in found[1]].count(0) == 8  # of its own and the dogs', 10
    assert contents(archive, tmp_path / "scratch") == found
    monkeypatch.setattr(tree_room, "LINKED", 50)
    for name in range(12):
        (folder / str(name)).mkdir()
        for other in range(12):
            (folder / str(name) / f"to {other}").symlink_to(f"../{other}")
    for path in (folder, pack(folder, tmp_path / "a.tar")):
        with pytest.raises(UserError, match=r"links lead to .* more than 50 times"):
            contents(path, tmp_path / "scratch")


@pytest.mark.parametrize("cut", [0, 100, 511])
def test_the_end_of_a_tar_is_checked(tmp_path: Path, cut: int) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tar")
    with tarfile.open(archive) as packed:
        last = max(packed, key=lambda each: each.offset)
    end = last.offset_data + -(-last.size // 512) * 512
    whole = archive.read_bytes()
    archive.write_bytes(whole[: end + 512])
    open_source(archive, tmp_path)  # one block of zeros is enough
    archive.write_bytes(whole[: end + cut])
    [problem] = problems(archive)
    assert problem.endswith("is damaged or cut short: the end-of-archive block is missing")


def test_nothing_is_lost_behind_a_damaged_header(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *[f"{label}/{n}.png" for label in "ab" for n in range(9)])
    archive = pack(folder, tmp_path / "a.tar")
    with tarfile.open(archive) as packed:
        middle = packed.getmembers()[10].offset
    content = bytearray(archive.read_bytes())
    content[middle : middle + 8] = b"x" * 8
    archive.write_bytes(content)
    [problem] = problems(archive)
    assert "is damaged or cut short" in problem
    two = tmp_path / "two.tar"
    two.write_bytes(pack(folder, tmp_path / "b.tar").read_bytes() * 2)
    [problem] = problems(two)
    assert "there is more behind its last readable member" in problem


def test_a_member_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    (folder / "cat/large.png").write_bytes(bytes(3000))
    monkeypatch.setattr(source_room, "LARGEST", 2999)
    for archive in ("a.tar", "a.tgz", "a.zip"):
        found = problems(pack(folder, tmp_path / archive))
        assert any("large.png: its 0.0 GB are too many for an image file" in each for each in found)
    assert any("are too many" in each for each in problems(folder))


@pytest.mark.parametrize("extended", [False, True])
def test_a_negative_size_does_not_lead_back(tmp_path: Path, extended: bool) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tar")
    info = member("cat/back.png", size=-1024)
    if extended:
        info.size, info.pax_headers = 0, {"size": "-1024"}
    header = info.tobuf(tarfile.PAX_FORMAT if extended else tarfile.GNU_FORMAT)
    archive.write_bytes(header + archive.read_bytes())
    assert ImageFolder(path=archive).describe() is None
    [problem] = problems(archive)
    assert str(archive) in problem


def test_a_name_of_endless_folders_is_refused(tmp_path: Path) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tar")
    with tarfile.open(archive, "a") as packed:
        packed.addfile(member("d/" * 50_000 + "1.png"), io.BytesIO())
    [problem] = problems(archive)
    assert problem.startswith("more than 100 folders lie within one another: d/d/d")
