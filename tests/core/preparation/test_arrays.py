"""Array files and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.preparation.raw_data import images, prepared, raw
from torchyard.core.data.raw import ArraySplit, SampleSplit


def test_statistics_of_many_chunks_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchyard.core.preparation.arrays.CHUNK_BYTES", 1000)
    samples = images(200, 3, 4, 5)
    found = prepared(raw(ArraySplit(samples, np.zeros(200, int)), None), tmp_path)
    scaled = samples / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std((0, 2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(found.train.samples, samples)


def test_a_constant_component_has_no_deviation(tmp_path: Path) -> None:
    vectors = np.full((50, 2), 0.1, dtype=np.float32)
    split = ArraySplit(vectors, np.zeros(50, int))
    assert prepared(raw(split, split), tmp_path).std == pytest.approx((0, 0), abs=1e-12)
    grey = ArraySplit(np.full((9, 1, 7, 7), 77, np.uint8), np.zeros(9, int))
    assert prepared(raw(grey, grey), tmp_path / "b").std == (0,)


def test_statistics_of_signals_are_those_of_their_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchyard.core.preparation.arrays.CHUNK_BYTES", 1000)
    signals = np.random.default_rng(0).normal(3, 2, (90, 2, 16)).astype(np.float32)
    split = ArraySplit(signals, np.arange(90) % 2)
    found = prepared(raw(split, split), tmp_path)
    assert (found.shape, found.dtype) == ((2, 16), "float32")
    np.testing.assert_allclose(found.mean, signals.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.std, signals.std((0, 2)), rtol=1e-5)
    np.testing.assert_array_equal(found.test.samples, signals)


@pytest.mark.parametrize("type_", [np.int8, np.uint8, np.int16, np.uint16, np.int32, ">i8"])
def test_token_ids_are_kept_as_they_are_and_have_no_statistics(tmp_path: Path, type_: Any) -> None:
    ids = np.arange(60).reshape(6, 10).astype(type_)
    stream = SampleSplit([(row, number % 2) for number, row in enumerate(ids)], 6)
    found = prepared(raw(ArraySplit(ids, np.arange(6) % 2), stream), tmp_path)
    assert (found.shape, found.dtype, found.mean, found.std) == ((10,), "int64", (), ())
    for part in (found.train, found.test):
        np.testing.assert_array_equal(part.samples, np.arange(60).reshape(6, 10), strict=True)
