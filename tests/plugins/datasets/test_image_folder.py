"""Image folders: layouts, sizes and channels, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.datasets.image_files import DIVIDED, FLAT, pack, prepared, problems, tree
from torchyard import PreparedDataset
from torchyard.core.preparation.prepare import find_prepared
from torchyard.plugins.datasets.image_folder import ImageFolder


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


def test_folds_of_a_folder_divide_it(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *[f"{label}/{n}.png" for label in "abc" for n in range(4)])
    found = [prepared(folder, tmp_path / "cache", folds=4, fold=fold) for fold in range(4)]
    assert [np.bincount(each.test.labels).tolist() for each in found] == [[1, 1, 1]] * 4
    tested = {each.test.samples.tobytes() for each in found}
    assert len(tested) == 4
    both = tree(tmp_path / "other" / "parts", *DIVIDED)
    assert problems(both, folds=2, fold=0) == [
        "dataset.folds draws the test part, but there is a test part in the folder"
    ]


def test_size_and_channels(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    assert prepared(folder, tmp_path / "cache").shape == (3, 6, 5)
    assert prepared(folder, tmp_path / "cache", image_size=4).shape == (3, 4, 4)
    assert prepared(folder, tmp_path / "cache", image_size=(8, 4)).shape == (3, 8, 4)
    assert prepared(folder, tmp_path / "cache", channels="grey").shape == (1, 6, 5)
    grey = tree(tmp_path / "grey", *FLAT, grey=True)
    assert prepared(grey, tmp_path / "cache").shape == (1, 6, 5)
    assert prepared(grey, tmp_path / "cache", channels="rgb").shape == (3, 6, 5)


def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tree(tmp_path / "i", *FLAT)
    clean = prepared(folder, tmp_path / "cache")
    tree(folder, "cat/.hidden.png", "__MACOSX/cat/._1.png", ".git/x/1.png", "loose.png")
    for name in ("cat/Thumbs.db", "dog/notes.txt", ".DS_Store"):
        (folder / name).write_text("no image")
    note = (
        "7 of 17 files are not images of a class and are left out: 4 hidden, 1 .db, 1 .txt, "
        "1 image outside the class folders (loose.png); "
        "in cat 2, the top folder 2, .git/x 1, __MACOSX/cat 1, dog 1"
    )
    archive = pack(folder, tmp_path / "a.zip")
    for path in (folder, archive, folder):  # the third time it is found prepared
        found = prepared(path, tmp_path / "2")
        assert found.digest == clean.digest
        assert found.notes == (note,)
        assert PreparedDataset.open(found.folder).notes == (note,)
    assert clean.notes == ()


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
    assert len(found) == 3  # with advice
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
