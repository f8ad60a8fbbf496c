"""What the columns of a table say of its rows: labels, parts, groups, times and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.plugins.datasets.tables.tables import listed_images, prepared, problems, write
from torchyard import PreparedDataset


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Any]:
    return listed_images(tmp_path)


def made(folder: Path, columns: Any, name: str = "t.csv", **settings: Any) -> PreparedDataset:
    path = write(folder / name, columns)
    return prepared("image_table", folder / "cache", path=path, **settings)


def refused(folder: Path, columns: Any, name: str = "t.csv", **settings: Any) -> list[str]:
    path = write(folder / name, columns)
    return problems("image_table", folder / "refused", path=path, **settings)


# ---- labels


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_numbers_are_classes_in_the_order_of_their_values(
    tmp_path: Path, images: dict[str, Any], name: str
) -> None:
    found = made(tmp_path, images | {"label": [10, 9, 2, 10] * 5}, name)
    assert found.classes == ("2", "9", "10")


def test_labels_are_texts_as_they_are_written(tmp_path: Path, images: dict[str, Any]) -> None:
    assert made(tmp_path, images | {"label": ["007", "NA"] * 10}).classes == ("007", "NA")
    column = pd.Series(["b", "a"] * 10, dtype="category")
    assert made(tmp_path, images | {"label": column}, "t.parquet").classes == ("a", "b")


def test_labels_that_are_none_are_counted(tmp_path: Path, images: dict[str, Any]) -> None:
    labels = [None if n < 12 else "ab"[n % 2] for n in range(20)]
    message = (
        "the column 'label' has no label in 12 rows: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 … and 2 more"
    )
    assert refused(tmp_path, images | {"label": labels}) == [message]
    assert refused(tmp_path, images | {"label": ["a"] * 20}) == [
        "there is only one class in the column 'label', 'a'; a classifier needs two"
    ]


def test_a_target_of_regression_is_no_class(tmp_path: Path) -> None:
    columns = listed_images(tmp_path, 60) | {"label": np.linspace(0, 1, 60)}
    [problem] = refused(tmp_path, columns)
    assert problem.startswith("the column 'label' has 60 different values in 60 rows: they are no")


def test_classes_that_look_alike_are_said(tmp_path: Path, images: dict[str, Any]) -> None:
    labels = ["caf\u00e9", "cafe\u0301", "1", "1.0", "Cat", "cat", "A", "a", "Cat", "cat"] * 2
    found = made(tmp_path, images | {"label": labels})
    assert found.classes == ("1", "1.0", "A", "Cat", "a", "caf\u00e9", "cat")
    assert "warning: are these classes one? '1' and '1.0', 'Cat' and 'cat'" in found.notes


# ---- parts


def test_a_split_column_with_usual_names(tmp_path: Path, images: dict[str, Any]) -> None:
    split = ["Training"] * 10 + ["val"] * 4 + [" test"] * 6
    found = made(tmp_path, images | {"split": split})
    assert found.counts == {"train": 10, "validation": 4, "test": 6}
    assert found.test.labels.tolist() == [0, 1] * 3
    only = made(tmp_path, images | {"split": ["train"] * 14 + ["dev"] * 6})
    assert only.counts == {"train": 14, "test": 6}
    assert only.notes[1] == "the validation rows are the test part, because there is no other"
    drawn = made(tmp_path, images | {"split": ["train"] * 20})
    assert drawn.counts == {"train": 16, "test": 4}


def test_a_split_column_that_cannot_be(tmp_path: Path, images: dict[str, Any]) -> None:
    def said(values: Any, **settings: Any) -> str:
        [problem] = refused(tmp_path, images | {"split": values}, **settings)
        return problem.removeprefix("dataset.split: the column 'split' ")

    assert said(["train"] * 10 + ["tset"] * 7 + [None] * 3) == (
        "has values that name no part: '' (3 rows), 'tset' (7 rows); they are train, validation "
        "and test, or other usual names of these"
    )
    assert said(["test"] * 20) == "names no row for training"
    assert said(["train"] * 8 + ["val", "eval", "test"] * 4).startswith(
        "names validation, evaluation, test: there can be"
    )
    both = ["train"] * 10 + ["test"] * 10
    why = "but the column 'split' has one: set dataset.split=none"
    assert said(both, folds=2, fold=0) == f"dataset.folds draws the test part, {why}"
    assert said(both, time="path") == f"dataset.time: the column 'path' has no time in {TWENTY}"


TWENTY = "20 rows: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 … and 10 more"


def test_a_class_in_one_part_alone_is_said(tmp_path: Path, images: dict[str, Any]) -> None:
    labels = ["a", "b"] * 9 + ["c", "a"]
    split = ["train"] * 10 + ["test"] * 10
    found = made(tmp_path, images | {"label": labels, "split": split})
    assert found.notes[1:] == (
        "warning: no training sample is of 1 of 3 classes, which cannot be learnt: c",
    )


# ---- groups


@pytest.mark.parametrize("settings", [{}, {"folds": 3, "fold": 1}, {"seed": 4}])
def test_no_group_is_divided(
    tmp_path: Path, images: dict[str, Any], settings: dict[str, Any]
) -> None:
    groups = [f"p{n // 4}" for n in range(20)]
    found = made(tmp_path, images | {"who": groups}, group="who", **settings)
    assert found.train.groups is not None
    assert found.test.groups is not None
    assert not {*found.train.groups} & {*found.test.groups}
    assert len(found.test) in (4, 8)


def test_groups_in_two_parts_are_counted_and_named(tmp_path: Path) -> None:
    images = listed_images(tmp_path, 30)
    split = ["train"] * 12 + ["test"] * 12 + ["val"] * 6
    groups = [f"p{n % 12}" for n in range(24)] + ["p0", *"abcde"]
    [problem] = refused(tmp_path, images | {"split": split, "group": groups})
    assert problem == (
        "12 groups are in more than one split: p0 (train, validation, test), p1 (train, test), "
        "p10 (train, test), p11 (train, test), p2 (train, test), p3 (train, test), "
        "p4 (train, test), p5 (train, test), p6 (train, test), p7 (train, test) … and 2 more"
    )
    lonely = images | {"group": [None] * 30}
    found = made(tmp_path, lonely)
    assert found.notes[1] == "30 rows have no group: each is one of its own"
    assert found.counts == {"train": 24, "test": 6}
    assert refused(tmp_path, images | {"group": ["one"] * 30}) == [
        "one group cannot be divided into 2 parts"
    ]


# ---- time and weights


def test_whether_day_or_month_comes_first(tmp_path: Path, images: dict[str, Any]) -> None:
    days = [f"{n % 10 + 4:02}/0{n // 10 + 1}/2024" for n in range(20)]  # 13/01 is a day in January
    found = made(tmp_path, images | {"taken": days, "label": [0, 1] * 8 + [2] * 4}, time="taken")
    assert np.bincount(found.test.labels).tolist() == [0, 0, 4]
    [problem] = refused(tmp_path, images | {"taken": ["01/02/2024"] * 20}, time="taken")
    assert problem == (
        "dataset.time: the column 'taken' has dates such as '01/02/2024': day or month first? "
        "Write 2024-02-13"
    )


@pytest.mark.parametrize(
    "times",
    [
        [*range(20)],
        [f"2024-03-{n + 1:02}" for n in range(20)],
        [f"2024-03-01 {n:02}:15:00+08:00" for n in range(20)],
    ],
)
def test_the_newest_rows_are_the_test_part(
    tmp_path: Path, images: dict[str, Any], times: Any
) -> None:
    order = np.random.default_rng(0).permutation(20)
    columns = images | {"taken": [times[n] for n in order], "label": order >= 10}
    found = made(tmp_path, columns, time="taken", test_fraction=0.25)
    assert found.counts == {"train": 15, "test": 5}
    assert found.test.labels.tolist() == [1] * 5
    assert found.notes[1] == "the newest 5 of 20 rows are for testing"


def test_a_moment_and_a_group_stay_together(tmp_path: Path, images: dict[str, Any]) -> None:
    years = [2020] * 10 + [2021] * 6 + [2022] * 4
    found = made(tmp_path, images | {"year": years}, time="year", test_fraction=0.3)
    assert found.counts == {"train": 10, "test": 10}
    groups = ["old", "new"] * 10
    found = made(tmp_path, images | {"year": [*range(20)], "group": groups}, time="year")
    assert found.counts == {"train": 10, "test": 10}
    assert {*found.test.labels} == {1}  # the newest is of the group "new"
    [problem] = refused(tmp_path, images | {"year": [1] * 20}, time="year")
    assert problem.startswith("dataset.time: all samples, or groups, are of one moment")
    [problem] = refused(tmp_path, images | {"year": years}, time="year", folds=2, fold=0)
    assert problem == "dataset.folds draws the test part, but dataset.time chooses it"


def test_weights_are_numbers(tmp_path: Path, images: dict[str, Any]) -> None:
    found = made(tmp_path, images | {"sample_weight": [*range(20)]})
    assert found.train.weights is not None
    assert 16 == len(found.train.weights) == len({*found.train.weights})
    words = images | {"sample_weight": ["1.5"] * 18 + ["much", None]}
    assert refused(tmp_path, words) == [
        "dataset.weight: the column 'sample_weight' has no number in 2 rows: 19, 20"
    ]
    [problem] = refused(tmp_path, images | {"sample_weight": [-1] * 20})
    assert problem.startswith("16 weights are below 0 or not finite")
