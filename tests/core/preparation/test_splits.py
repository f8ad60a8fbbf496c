"""Raw splits: written as they are, or refused with every problem."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.core.preparation.raw_data import TWO, images, prepared, problems, raw, vectors
from torchyard.core.data.raw import ArraySplit, RawData, SampleSplit


@settings(max_examples=25, deadline=None)
@for_all(st.data())
def test_arrays_come_back_as_they_were(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    if data.draw(st.booleans()):
        sample = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
        values = arrays.arrays(np.uint8, st.just(sample))
        dtype, axes, scale = np.uint8, (0, 2, 3), 255.0
    else:
        sample = (data.draw(st.integers(1, 6)),)
        values = arrays.arrays(np.float32, st.just(sample), elements=st.floats(-9, 9, width=32))
        dtype, axes, scale = np.float32, (0,), 1.0
    splits = []
    for _ in range(2):
        rows = data.draw(st.lists(st.tuples(values, st.integers(0, classes - 1)), min_size=1))
        samples = np.stack([row for row, _ in rows]).astype(dtype)
        splits.append(ArraySplit(samples, np.array([label for _, label in rows])))
    with tempfile.TemporaryDirectory() as folder:
        content = raw(*splits, tuple(map(str, range(classes))))
        found = prepared(content, Path(folder))
        for split, part in zip(splits, (found.train, found.test), strict=True):
            assert part.samples.dtype == dtype
            np.testing.assert_array_equal(part.samples, split.samples)
            np.testing.assert_array_equal(part.labels, split.labels)
            assert part.labels.dtype == np.int64
        wide = splits[0].samples.astype(np.float64) / scale
        np.testing.assert_allclose(found.mean, wide.mean(axes), atol=1e-6)
        np.testing.assert_allclose(found.std, wide.std(axes), atol=1e-6)
        assert found.shape == sample
        assert found.counts == {"train": len(splits[0].labels), "test": len(splits[1].labels)}


BAD: dict[str, tuple[Callable[[], RawData], str]] = {
    "empty train": (
        lambda: raw(ArraySplit(np.empty((0, 3, 4, 5), np.uint8), np.empty(0, int))),
        "the train split is empty",
    ),
    "empty test stream": (lambda: raw(None, SampleSplit([], 0)), "the test split is empty"),
    "empty test": (lambda: raw(None, SampleSplit([], 3)), "the test split is empty"),
    "dtype": (
        lambda: raw(ArraySplit(images(2).astype(np.int16), TWO)),
        "one train sample is int16 (3, 4, 5); it must be an image, uint8 (C, H, W) or a vector, "
        "float32 (D,) or a signal, float32 (C, L) or token ids, integers (L,)",
    ),
    "no channel": (lambda: raw(ArraySplit(images(2, 4, 5), TWO)), "uint8 (4, 5); it must be"),
    "shapes": (
        lambda: raw(None, ArraySplit(images(2, 1, 4, 5), TWO)),
        "the splits differ: train is uint8 (3, 4, 5), test is uint8 (1, 4, 5)",
    ),
    "labels": (
        lambda: raw(ArraySplit(images(4), np.array([0, 7, -1, 7]))),
        "train labels are out of range: -1 (1 of them), 7 (2 of them); "
        "there are 2 classes, so labels go from 0 to 1",
    ),
    "stream labels": (
        lambda: raw(SampleSplit([(images(1)[0], 0), (images(1)[0], 2)], 2)),
        "train labels are out of range: 2 (1 of them)",
    ),
    "label type": (
        lambda: raw(ArraySplit(images(2), np.array([0.0, 1.0]))),  # type: ignore[arg-type]
        "the train labels must be integers, one for each sample; they are float64 (2,); torchyard "
        "trains classifiers: regression is out of its scope",
    ),
    "several labels": (
        lambda: raw(ArraySplit(images(2), np.array([[0, 1], [1, 1]]))),
        "they are int64 (2, 2); several labels a sample are out of torchyard's scope",
    ),
    "a stream of several labels": (
        lambda: raw(SampleSplit([(images(1)[0], [0, 1]), (images(1)[0], [1])], 2)),  # type: ignore[list-item]
        "they are object (2,); several labels a sample are out of torchyard's scope",
    ),
    "a stream of numbers to learn": (
        lambda: raw(SampleSplit([(images(1)[0], 0.5), (images(1)[0], 1.5)], 2)),  # type: ignore[list-item]
        "regression is out of its scope",
    ),
    "signals of integers": (
        lambda: raw(ArraySplit(np.zeros((2, 3, 4), np.int16), TWO)),
        "one train sample is int16 (3, 4); it must be",
    ),
    "token ids of several lengths": (
        lambda: raw(
            SampleSplit([(np.arange(3), 0), (np.arange(4), 1)], 2),
            ArraySplit(np.zeros((2, 3), int), TWO),
        ),
        "1 train samples are int64 (4,), unlike the first",
    ),
    "a signal that is not finite": (
        lambda: raw(
            ArraySplit(np.full((2, 3, 4), np.nan, np.float32), TWO),
            ArraySplit(np.zeros((2, 3, 4), np.float32), TWO),
        ),
        "2 train samples hold values that are not finite (the first is sample 0)",
    ),
    "label count": (
        lambda: raw(ArraySplit(images(3), TWO)),
        "the train split has 3 samples and 2 labels",
    ),
    "not finite": (
        lambda: raw(
            ArraySplit(vectors((1, 2), (np.nan, 3), (4, np.inf)), np.array([0, 1, 0])),
            ArraySplit(vectors((1, 2)), np.array([0])),
        ),
        "2 train samples hold values that are not finite (the first is sample 1)",
    ),
    "no classes": (lambda: raw(classes=()), "there are no classes"),
    "control characters": (
        lambda: raw(classes=("cat", "\x1b[31mdog")),
        "the class name '\\x1b[31mdog' holds control characters",
    ),
    "another direction": (
        lambda: raw(classes=("cat", "\u202edog")),
        "the class name '\\u202edog' holds control characters",
    ),
    "classes of numbers": (
        lambda: raw(classes=("cat", 1)),  # type: ignore[arg-type]
        "the class 1 is of the type int, not a text",
    ),
    "a list of samples": (
        lambda: raw(ArraySplit([[1.0], [1.0, 2.0]], TWO)),  # type: ignore[arg-type]
        "the train split is of a list, not a NumPy array (of samples of one shape)",
    ),
    "a pair": (
        lambda: raw((images(2), TWO)),  # type: ignore[arg-type]
        "the train split is of a tuple, not an ArraySplit, a SampleSplit or an EncodedSplit",
    ),
    "no unicode": (
        lambda: raw(classes=("cat", "caf\udce9")),
        "the class name 'caf\\udce9' holds control characters, or bytes that are no Unicode",
    ),
    "validation labels": (
        lambda: replace(raw(), validation=ArraySplit(images(2), np.array([0, 2]))),
        "validation labels are out of range: 2 (1 of them)",
    ),
    "validation shape": (
        lambda: replace(raw(), validation=ArraySplit(images(2, 1, 4, 5), TWO)),
        "the splits differ: train is uint8 (3, 4, 5), validation is uint8 (1, 4, 5), test is uint8",
    ),
    "same class": (lambda: raw(classes=("cat", "cat")), "2 classes are named 'cat'"),
    "stream shapes": (
        lambda: raw(SampleSplit([(images(1)[0], 0), (images(1, 3, 9, 9)[0], 1)], 2)),
        "1 train samples are uint8 (3, 9, 9), unlike the first",
    ),
    "stream short": (
        lambda: raw(SampleSplit([(images(1)[0], 0)], 2)),
        "the train split declares count=2 but yields only 1",
    ),
    "stream long": (
        lambda: raw(SampleSplit([(images(1)[0], 0)] * 3, 2)),
        "the train split declares count=2 but yields more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(tmp_path: Path, case: str) -> None:
    build, message = BAD[case]
    found = problems(build(), tmp_path)
    assert len(found) == 1
    assert message in found[0]


def test_a_validation_split_of_its_own_is_kept_apart(tmp_path: Path) -> None:
    content, own = raw(), ArraySplit(images(3), np.array([1, 1, 0]))
    plain = prepared(content, tmp_path)
    found = prepared(replace(content, validation=own), tmp_path / "own")
    assert found.counts == {"train": 6, "validation": 3, "test": 2}
    assert found.samples == "6 training, 3 validation and 2 test samples"
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.samples, own.samples)
    np.testing.assert_array_equal(found.validation.labels, own.labels)
    np.testing.assert_array_equal(found.train.samples, plain.train.samples)
    assert (found.mean, found.std) == (plain.mean, plain.std)  # of the training split alone
    assert found.digest != plain.digest
    assert plain.validation is None
    assert plain.samples == "6 training and 2 test samples"
    assert [*found.splits] == ["train", "validation", "test"]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    content = raw(
        ArraySplit(images(2), np.array([5, 0])),
        ArraySplit(images(0), np.empty(0, int)),
        ("cat", "cat"),
    )
    assert len(problems(content, tmp_path)) == 3


def test_a_stream_of_lists_is_vectors(tmp_path: Path) -> None:
    stream = SampleSplit([([1, 2.5], 0), ((3, 4), 1)], 2)
    found = prepared(raw(stream, ArraySplit(vectors((0, 0)), np.array([1]))), tmp_path)
    np.testing.assert_array_equal(found.train.samples, vectors((1, 2.5), (3, 4)))
