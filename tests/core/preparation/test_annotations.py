"""Groups and weights of samples: kept beside the labels, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.core.preparation.raw_data import image_files, image_split, prepared, problems, raw
from torchyard import PreparedDataset

GROUPS = {"train": ["a", "a", "b", "b", "c", "c"], "test": ["d", "e"]}


def test_they_are_kept_beside_the_labels(tmp_path: Path) -> None:
    plain = raw()
    found = prepared(replace(plain, groups=GROUPS, weights=[1, 2, 0, 1, 1, 1]), tmp_path)
    again = PreparedDataset.open(found.folder)
    assert again.train.groups is not None
    assert again.test.groups is not None
    assert again.train.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert again.test.groups.tolist() == [3, 4]
    assert again.train.weights is not None
    assert again.train.weights.tolist() == [1, 2, 0, 1, 1, 1]
    assert again.test.weights is None
    # What is held out, and how often a sample is drawn, depends on them.
    others = [
        prepared(replace(plain, **given), tmp_path / str(number))
        for number, given in enumerate(({}, {"groups": GROUPS}, {"weights": [1] * 6}))
    ]
    assert len({each.digest for each in [found, *others]}) == 4
    assert others[0].train.groups is others[0].train.weights is None


def test_those_of_an_image_that_is_left_out_go_with_it(tmp_path: Path) -> None:
    files = image_files(tmp_path / "files", 6)
    files[2].write_text("no image")
    content = replace(
        raw(image_split(files), image_split(image_files(tmp_path / "test", 2))),
        groups={"train": [5, 6, 7, 8, 9, 5]},
        weights=np.arange(6),
    )
    found = prepared(content, tmp_path / "cache", broken="skip")
    assert found.train.groups is not None
    assert found.train.groups.tolist() == [0, 1, 3, 4, 0]
    assert found.train.weights is not None
    assert found.train.weights.tolist() == [0, 1, 3, 4, 5]


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    shared = replace(raw(), groups={"train": [1, 2, 3, 4, 5, 6], "test": [6, 2]}, weights=[1, 2])
    assert problems(shared, tmp_path) == [
        "2 groups are in more than one split: 2 (train, test), 6 (train, test)",
        "the train split has 6 samples and 2 weights",
    ]
    wrong = replace(raw(), groups={"validation": [1]}, weights=[1, -2, float("nan"), 1, 1, 1])
    assert problems(wrong, tmp_path) == [
        "there are groups of a split 'validation', which the data set does not have",
        "2 weights are below 0 or not finite (the first is that of training sample 1: -2)",
    ]
    assert problems(replace(raw(), weights=[0] * 6), tmp_path) == ["all weights are 0"]


def test_a_class_that_a_split_lacks_is_said(tmp_path: Path) -> None:
    content = replace(raw(), classes=["cat", "dog", "fish"])
    assert prepared(content, tmp_path).notes == (
        "warning: no training sample is of 1 of 3 classes, which cannot be learnt: fish",
        "no test sample is of 1 of 3 classes, whose accuracy is not known: fish",
    )


def test_other_groups_of_the_same_files_are_noticed(tmp_path: Path) -> None:
    train, test = (
        image_split(image_files(tmp_path / "a", 6)),
        image_split(image_files(tmp_path / "b", 2)),
    )
    for groups in ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]):
        content = replace(raw(train, test), groups={"train": groups})
        found = prepared(content, tmp_path / "cache", verify=True)
        assert found.train.groups is not None
        assert found.train.groups.tolist() == groups
