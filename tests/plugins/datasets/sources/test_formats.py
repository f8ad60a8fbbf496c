"""Archives: listed and read whatever their format, refused where they are damaged."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.plugins.datasets.image_files import DIVIDED, FLAT, pack, prepared, problems, tree
from torchyard.plugins.datasets.sources.formats import open_source


@pytest.mark.parametrize("names", [FLAT, DIVIDED], ids=["flat", "divided"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("top", ["", "./", "data set/"])
def test_a_folder_and_its_archive_are_one_data_set(
    tmp_path: Path, names: list[str], archive: str, top: str
) -> None:
    folder = tree(tmp_path / "images", *names)
    packed = pack(folder, tmp_path / archive, top)
    one, two = prepared(folder, tmp_path / "1"), prepared(packed, tmp_path / "2")
    assert one.digest == two.digest
    assert not list((tmp_path / "2/downloads").iterdir()), "a scratch file is left"
    with Image.open(folder / names[0]) as image:
        pixels = np.moveaxis(np.asarray(image), 2, 0)
    assert any(
        (sample == pixels).all() for split in (one.train, one.test) for sample in split.samples
    )


def test_long_names_links_and_names_that_lead_outside(tmp_path: Path) -> None:
    long = "n" * 150
    folder = tree(tmp_path / "i", *FLAT, f"cat/{long}.png", "dog/é.png")
    plain = prepared(folder, tmp_path / "cache")
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive = tmp_path / f"{format}.tar.gz"
        with tarfile.open(archive, "w:gz", format=format) as packed:
            packed.add(folder, "images")
            link = tarfile.TarInfo("images/dog/b")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            packed.addfile(link)
            outside = tarfile.TarInfo("../../outside.png")
            outside.size = 4
            packed.addfile(outside, io.BytesIO(b"evil"))
        assert prepared(archive, tmp_path / "2").digest == plain.digest
    assert not list(tmp_path.rglob("outside*"))


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    (folder / "cat" / "again").symlink_to(folder)
    shutil.copytree(folder / "dog", tmp_path / "elsewhere")
    (folder / "cow").symlink_to(tmp_path / "elsewhere")
    assert prepared(folder, tmp_path / "cache").classes == ("cat", "cow", "dog")


def test_listing_a_tar_keeps_names_and_places_alone(tmp_path):
    names = [f"train/{label}/{n}.png" for label in ("cat", "dog") for n in range(3000)]
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as packed:
        for name in names:
            packed.addfile(tarfile.TarInfo(name))
    open_source(archive, tmp_path)  # whatever the first time imports
    tracemalloc.start()
    try:
        source = open_source(archive, tmp_path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(source.files) == sorted(names)
    assert most / len(names) < 450  # bytes; with what tarfile keeps of each member, 590


@pytest.mark.parametrize("archive", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused(tmp_path: Path, archive: str, share: float) -> None:
    names = [f"{label}/{n}.png" for label in "ab" for n in range(20)]
    path = pack(tree(tmp_path / "i", *names, height=30), tmp_path / archive)
    whole = path.stat().st_size
    if archive == "a.tar":  # ends in up to 10 KB of padding, which nobody misses
        with tarfile.open(path) as packed:
            whole = packed.getmembers()[-1].offset_data + 1024
    os.truncate(path, int(whole * share))
    (problem,) = problems(path)
    assert "cut short" in problem
    assert str(path) in problem


@pytest.mark.parametrize("archive", ["a.zip", "a.tar.gz"])
def test_a_corrupted_archive_is_refused(tmp_path: Path, archive: str) -> None:
    path = pack(tree(tmp_path / "i", *FLAT, height=60), tmp_path / archive)
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 3, len(content) // 2):
        content[position] ^= 0x55
    path.write_bytes(content)
    found = problems(path)
    named = [problem for problem in found if "dataset.broken" not in problem]
    assert all("damaged" in problem for problem in named)
    assert str(path) in found[0]


def test_something_else_is_no_archive(tmp_path: Path) -> None:
    for number, content in enumerate(
        (b"", b"hello", bytes(range(256)) * 9, b"\x1f\x8b" + b"x" * 99)
    ):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        (problem,) = problems(path)
        assert "is neither a folder nor a .zip, .tar or .tar.gz archive" in problem or (
            content[:2] == b"\x1f\x8b" and "is damaged or cut short" in problem
        )
