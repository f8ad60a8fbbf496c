"""Parts and classes: understood by the names of the folders, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.datasets.image_files import contents, fill, notes, pack, prepared, problems, tree


def parts_of(path: Path) -> dict[str, list[str]]:
    """The names of the class folders and files that each part has."""
    classes, *parts = contents(path, path.parent / "scratch")
    return {
        name: [f"{classes[label]} {content.decode()}" for label, content in part]
        for name, part in zip(("train", "validation", "test"), parts, strict=True)
        if part is not None
    }


def texts(folder: Path, *names: str) -> Path:
    """Write files that hold their own names; an empty folder where the name ends in a slash."""
    return fill(folder, names, str.encode)


def part(folder: str, number: int = 1) -> list[str]:
    return [f"{folder}/{label}/{n}.png" for label in ("cat", "dog") for n in range(number)]


@pytest.mark.parametrize("folders", [("fold1", "fold2", "fold3"), ("tr", "te")])
def test_folders_that_all_have_the_same_folders_may_be_parts(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    folder = texts(tmp_path / "i", *[name for each in folders for name in part(each)])
    [note] = notes(folder)
    assert note == (
        f"warning: the classes are {', '.join(folders if 'te' not in folders else ('te', 'tr'))}, "
        "and each of them has the folders cat, dog: if those are the classes, name the folders "
        "around them train, val and test"
    )
    texts(folder, f"{folders[0]}/0.png")  # of a class that is divided further
    assert notes(folder) == []


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", None, "test"),
        ("Train", None, "TEST"),
        ("training", "validation", "testing"),
        ("TRAIN", "Val", "eval"),
        ("train", "eval", "test"),
        ("train", "valid", "test"),
        ("train", "dev", "test"),
        ("train", None, "val"),
        ("train", None, "Validation"),
        ("train", None, "evaluation"),
        ("seg_train", None, "seg_test"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("training_set", None, "test_set"),
        ("trainset", None, "testset"),
        ("Training Data", None, "Testing Data"),
        ("train", None, "test1"),
        ("train_images", "val2017", "test"),
        ("flowers-train-2019", "flowers-val-2019", "flowers-test-2019"),
        ("data/photos/train", "data/photos/val", "data/photos/test"),
        ("train/training", None, "test"),
    ],
)
def test_parts_are_understood_by_their_names(
    tmp_path: Path, train: str, validation: str | None, test: str
) -> None:
    names = {"train": train, "validation": validation, "test": test}
    given = {part: folder for part, folder in names.items() if folder}
    folder = texts(tmp_path / "i", *[name for each in given.values() for name in part(each)])
    expected = {
        name: [f"cat {each}/cat/0.png", f"dog {each}/dog/0.png"] for name, each in given.items()
    }
    assert parts_of(folder) == expected
    texts(folder, f"{train}/stray.png", "stray.png", f"{test}/stray.png")
    assert parts_of(folder) == expected
    [note] = [note for note in notes(folder) if "left out" in note]
    assert "3 of" in note
    for each in train, test:
        assert f"{each}/stray.png" in note


def test_a_validation_part_that_must_serve_as_the_test_part_is_said_to(tmp_path: Path) -> None:
    folder = texts(tmp_path / "i", *part("train"), *part("val"))
    assert notes(folder) == ["'val' is the test part, because there is no other"]
    texts(folder, *part("test"))
    assert notes(folder) == []


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["train/1.png", "train/2.png", "test/1.png"], "'test', 'train' would be classes"),
        (["Training/1.png", "Testing/1.png"], "'Testing', 'Training' would be classes"),
        (["train/1.png", "val/1.png", "cat/1.png"], "'train', 'val' would be classes"),
        (["seg_train/1.png", "seg_test/1.png"], "'seg_test', 'seg_train' would be classes"),
        (["train/1.png", "test1/1.png"], "'test1', 'train' would be classes"),
        (["cat/1.png", "dog/1.png", "test images/1.png"], "'test images' would be classes"),
        (["cat/1.png", "dog/1.png", "test/1.png"], "'test' would be classes"),
        (["test/cat/1.png", "test/dog/1.png"], "and 'train' beside them"),
        (["val/cat/1.png", "test/dog/1.png"], "and 'train' beside them"),
        (["train/a/1.png", "Train/b/1.png"], "'Train', 'train' are all named as the train part"),
        (
            [*part("train"), *part("val"), *part("valid"), *part("test")],
            "'val', 'valid' are all named as the validation part",
        ),
        (
            [name for each in ("train", "val", "eval", "test") for name in part(each)],
            "a validation and a test part beside 'train', not three: 'val', 'eval', 'test'",
        ),
        (
            [name for each in ("a_train", "a_test", "b_train", "b_test") for name in part(each)],
            "holds several data sets in parts",
        ),
        (
            [f"{label}/{each}/1.png" for label in ("cat", "dog") for each in ("train", "test")],
            "the parts lie in the class folders (cat/train)",
        ),
    ],
)
def test_names_of_parts_are_no_classes(tmp_path: Path, names: list[str], refused: str) -> None:
    [problem] = problems(texts(tmp_path / "i", *names), image_size=8)
    assert problem.startswith(f"{tmp_path}/i")
    assert refused in problem


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "train/steam/1.png", "bus/1.png"],
        ["valid/1.png", "invalid/1.png"],
        ["steam train/1.png", "pregnancy test/1.png"],
        ["data/cat/1.png", "data/cat/more/2.png", "data/dog/1.png"],
        ["test data/cat/1.png", "test data/dog/1.png"],
    ],
)
def test_words_that_also_name_parts_can_be_classes(tmp_path: Path, names: list[str]) -> None:
    folder = texts(tmp_path / "i", *names, *[name.replace("1.png", "0.png") for name in names])
    classes = {name.split("data/")[-1].split("/")[0] for name in names}
    assert contents(folder, tmp_path)[0] == sorted(classes)


def test_test_images_without_labels_are_left_out_and_a_test_part_is_drawn(tmp_path: Path) -> None:
    folder = texts(tmp_path / "i", *part("asl_train/asl_train", 5), "asl_test/asl_test/A.jpg")
    found = parts_of(folder)
    assert (len(found["train"]), len(found["test"])) == (8, 2)
    assert notes(folder) == [
        "'asl_test' has no class folders, so its images have no labels",
        "1 of 11 files are not images of a class and are left out: 1 image outside the class "
        "folders (asl_test/asl_test/A.jpg); in asl_test/asl_test 1",
    ]


def test_the_note_of_what_is_left_out_stays_short(tmp_path: Path) -> None:
    others = [f"cat/{n}.{'abcdefgh'[n % 8]}{n % 8}" for n in range(2000)]
    strays = [f"unlabelled {n}/{n}.png" for n in range(30)]
    folder = texts(tmp_path / "i", *part("train", 2), *others, *strays, "train/cat/x.AVIF")
    [note] = notes(folder)
    assert note.startswith("2,030 of 2,035 files are not images of a class and are left out: ")
    assert "250 .a0, 250 .b1, 250 .c2, 250 .d3, 250 .e4, and 3 more" in note
    assert "30 images outside the class folders (unlabelled 0/0.png, " in note
    assert "and 25 more)" in note
    assert len(note) < 500


def test_without_any_image_it_says_what_is_there(tmp_path: Path) -> None:
    [problem] = problems(texts(tmp_path / "i", "cat/1.heic", "cat/2.heic", "dog/3.RAW", "dog/x"))
    assert problem.endswith("It holds 2 .heic, 1 .raw, 1 without a suffix")


def test_one_class_in_two_forms_of_unicode_is_one_class(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    names = [f"train/{composed}/1.png", "train/the/1.png", f"test/{apart}/2.png", "test/the/2.png"]
    found = prepared(tree(tmp_path / "i", *names), tmp_path / "cache")
    assert found.classes == (composed, "the")
    assert found.test.labels.tolist() == [0, 1]
    mac = tree(tmp_path / "mac", f"{apart}/1.png", f"{composed}/2.png", "the/1.png", "the/2.png")
    assert contents(mac, tmp_path)[0] == [composed, "the"]
    [problem] = problems(tree(tmp_path / "one/i", f"{apart}/1.png", f"{composed}/2.png"))
    assert f"there is only one class with images, '{composed}'" in problem


def test_a_wrapping_folder_may_have_files_beside_it(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "i", "a/b/cat/1.png", "a/b/cat/2.png", "a/b/dog/1.png", "a/b/dog/2.png"
    )
    plain = contents(folder / "a/b", tmp_path)
    tree(folder, "preview.png", "a/logo.png")
    (folder / "README").touch()
    assert contents(folder, tmp_path) == plain
    assert contents(pack(folder, tmp_path / "a.tgz"), tmp_path) == plain
