"""Image folders and archives: read, told apart, and refused."""

from __future__ import annotations

import io
import logging
import os
import random
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from torchyard import PreparedDataset, UserError
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.plugins.datasets.archives import open_source
from torchyard.plugins.datasets.image_folder import ImageFolder

RNG = np.random.default_rng(3)


def png(height: int = 6, width: int = 5, grey: bool = False, **options: object) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    buffer = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def tree(folder: Path, *names: str, **options: object) -> Path:
    """Write an image, or an empty folder where the name ends in a slash, for each name."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(**options))  # type: ignore[arg-type]
    return folder


def pack(folder: Path, archive: Path, top: str = "", shuffle: bool = True) -> Path:
    """Put all of a folder in an archive, in no particular order."""
    members = sorted(folder.rglob("*"))
    if shuffle:
        random.Random(1).shuffle(members)
    names = [top + member.relative_to(folder).as_posix() for member in members]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for member, name in zip(members, names, strict=True):
                packed.write(member, name)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix != ".tar" else "w") as packed_tar:
            for member, name in zip(members, names, strict=True):
                packed_tar.add(member, name, recursive=False)
    return archive


def prepared(path: Path, cache: Path, **options: object) -> PreparedDataset:
    params = ImageFolder.model_validate({"path": path, **options})
    return prepare_dataset("image_folder", params, cache, lambda *_: None)


def problems(path: Path, **options: object) -> list[str]:
    cache = path.parent / "cache"
    with pytest.raises(UserError) as caught:
        prepared(path, cache, **options)
    assert not [file for file in cache.rglob("*") if file.suffix in (".npy", ".tmp")]
    return [problem.removeprefix("dataset image_folder: ") for problem in caught.value.problems]


FLAT = [f"{label}/{n}.png" for label in ("cat", "dog") for n in range(5)]
DIVIDED = [f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "12"]


# ---- what is read ----


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


def test_parts_and_classes(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "i", "train/b/1.png", "train/b/2.png", "train/a/x/3.png", "VAL/b/1.png"
    )
    found = prepared(folder, tmp_path / "cache")
    assert found.classes == ("a", "b")
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.test.labels.tolist() == [1]
    assert found.source == str(folder)
    tree(folder, "test/a/1.png", "test/a/2.png")
    assert prepared(folder, tmp_path / "cache").test.labels.tolist() == [0, 0]


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", "train/1.png", "train/2.png", "bus/1.png", "bus/2.png")
    assert prepared(folder, tmp_path / "cache").classes == ("bus", "train")


def test_the_drawn_test_part_is_stratified_and_seeded(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *[f"{label}/{n:02}.png" for label in "abc" for n in range(20)])
    one = prepared(folder, tmp_path / "cache")
    assert np.bincount(one.test.labels).tolist() == [4, 4, 4]
    assert prepared(folder, tmp_path / "2").digest == one.digest
    assert prepared(folder, tmp_path / "cache", seed=1).digest != one.digest
    larger = prepared(folder, tmp_path / "cache", test_fraction=0.5)
    assert np.bincount(larger.test.labels).tolist() == [10, 10, 10]


def test_size_and_channels(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    assert prepared(folder, tmp_path / "cache").shape == (3, 6, 5)
    assert prepared(folder, tmp_path / "cache", image_size=4).shape == (3, 4, 4)
    assert prepared(folder, tmp_path / "cache", image_size=(8, 4)).shape == (3, 8, 4)
    assert prepared(folder, tmp_path / "cache", channels="grey").shape == (1, 6, 5)
    grey = tree(tmp_path / "grey", *FLAT, grey=True)
    assert prepared(grey, tmp_path / "cache").shape == (1, 6, 5)
    assert prepared(grey, tmp_path / "cache", channels="rgb").shape == (3, 6, 5)


def test_what_is_no_image_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    clean = prepared(folder, tmp_path / "cache")
    tree(folder, "cat/.hidden.png", "__MACOSX/cat/._1.png", ".git/x/1.png", "loose.png")
    for name in ("cat/Thumbs.db", "dog/notes.txt", ".DS_Store"):
        (folder / name).write_text("no image")
    with caplog.at_level(logging.INFO):
        assert prepared(folder, tmp_path / "2").digest == clean.digest
    assert "7 of 17 files are no images of a class" in caplog.text
    assert prepared(pack(folder, tmp_path / "a.zip"), tmp_path / "2").digest == clean.digest


def test_long_names_links_and_names_that_lead_outside(tmp_path: Path) -> None:
    long = "n" * 150
    folder = tree(tmp_path / "i", *FLAT, f"cat/{long}.png", "dog/é.png")
    plain = prepared(folder, tmp_path / "cache")
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive = tmp_path / f"{format}.tar.gz"
        with tarfile.open(archive, "w:gz", format=format) as packed:
            packed.add(folder, "images")
            for name, target in (("images/cat/a.png", "/etc/passwd"), ("images/dog/b", "..")):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
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


def test_an_abandoned_scratch_file_is_removed(tmp_path: Path) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tgz")
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / "scratch-0.tmp").write_bytes(b"left by a process that was killed")
    (downloads / "scratch-0.lock").touch()
    living = open_source(archive, downloads)
    assert living.close
    assert {f.suffix for f in downloads.iterdir()} == {".tmp", ".lock"}
    assert not (downloads / "scratch-0.tmp").exists()
    prepared(archive, tmp_path / "cache")
    (kept,) = downloads.glob("*.tmp")
    assert living.read(next(iter(living.files.values()))), f"{kept} was in use"
    living.close()
    assert not list(downloads.iterdir())


# ---- what is known beforehand, and found again ----


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


@pytest.mark.parametrize("archive", [None, "a.zip", "a.tar", "a.tar.gz"])
def test_the_shape_is_known_at_a_glance(tmp_path: Path, archive: str | None) -> None:
    path = tree(tmp_path / "i", *FLAT)
    if archive:
        path = pack(path, tmp_path / archive)
    spec = ImageFolder(path=path).describe()
    assert spec
    assert spec.shape == (3, 6, 5)
    assert ImageFolder(path=path, image_size=9, channels="grey").describe().shape == (1, 9, 9)  # type: ignore[union-attr]
    (tmp_path / "notes").write_text("no archive")
    assert ImageFolder(path=tmp_path / "notes").describe() is None


def test_a_glance_at_a_large_archive_reads_its_beginning(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    pack(tree(tmp_path / "i", *FLAT), archive, shuffle=False)
    content = bytearray(archive.read_bytes() + bytes(100))
    content[-400:] = bytes(400)  # whoever reads to the end stumbles
    archive.write_bytes(content)
    assert ImageFolder(path=archive).describe() is not None


def test_a_changed_file_is_prepared_anew(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    archive = pack(folder, tmp_path / "a.tar")
    for path in (folder, archive):
        params = ImageFolder(path=path)
        cache = tmp_path / f"cache of {path.name}"
        prepared(path, cache)
        assert find_prepared("image_folder", params, cache)
        os.utime(path if path is archive else path / "cat/0.png", (1, 1))
        assert not find_prepared("image_folder", params, cache)


# ---- what is refused ----


def test_a_missing_path_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "flowers.tar.gz").touch()
    with pytest.raises(
        ValidationError, match=r"no such file or folder: .*/flower\.tar\.gz"
    ) as error:
        ImageFolder(path=tmp_path / "flower.tar.gz")
    assert f"Did you mean '{tmp_path}/flowers.tar.gz'?" in str(error.value)
    with pytest.raises(ValidationError, match=r"no such file or folder: .*/nowhere/at/all"):
        ImageFolder(path=tmp_path / "nowhere/at/all")


def test_a_relative_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "i", *FLAT)
    assert ImageFolder(path=Path("i")).path == tmp_path / "i"


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
    for place in range(len(content) // 3, len(content) // 2):
        content[place] ^= 0x55
    path.write_bytes(content)
    found = problems(path)
    assert all("damaged" in problem for problem in found)
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


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tree(tmp_path / "nothing", "cat/", "dog/"))
    assert problem.startswith(f"no images in {tmp_path}/nothing")
    (problem,) = problems(tree(tmp_path / "loose", "1.png", "2.png"))
    assert problem == f"{tmp_path}/loose: all 2 images lie outside class folders"
    (problem,) = problems(tree(tmp_path / "one", "cat/1.png", "cat/2.png"))
    assert "there is only one class with images, 'cat'; a classifier needs two" in problem


@pytest.mark.parametrize("archive", [None, "a.zip", "a.tar.gz"])
def test_all_mistakes_of_a_layout_come_at_once(tmp_path: Path, archive: str | None) -> None:
    names = ("train/a/1.png", "train/empty/", "test/a/1.png", "test/strange/1.png", "test/fine/")
    path = tree(tmp_path / "i", *names, "train/fine/1.png", "train/b/sub/")
    if archive:
        path = pack(path, tmp_path / archive)
    assert problems(path) == [
        f"the class folder {path}/train/b holds no images",
        f"the class folder {path}/train/empty holds no images",
        f"{path}: classes of the test part are not in the training part: strange",
    ]


@pytest.mark.parametrize("archive", [None, "a.zip", "a.tar"])
def test_an_unreadable_image_is_named_with_its_path(tmp_path: Path, archive: str | None) -> None:
    path = tree(tmp_path / "i", *FLAT)
    os.truncate(path / "dog/3.png", 60)
    (path / "cat/2.png").write_text("hello")
    if archive:
        path = pack(path, tmp_path / archive)
    found = sorted(problems(path, image_size=6))
    assert len(found) == 2
    assert found[0].startswith(f"{path}/cat/2.png: not an image")
    assert found[1].startswith(f"{path}/dog/3.png: ")


def test_sizes_that_differ_are_refused_with_advice(tmp_path: Path) -> None:
    path = tree(tmp_path / "i", *FLAT)
    tree(path, "dog/7.png", height=9)
    assert problems(path) == [
        f"{path}/dog/7.png: of another size: 9x5, not 6x5",
        "set dataset.image_size to scale all images to one size",
    ]
    assert prepared(path, tmp_path / "cache", image_size=6).shape == (3, 6, 6)
