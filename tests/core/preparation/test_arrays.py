"""Array files and statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.core.preparation.raw_data import images, prepared, raw
from torchyard.core.data.raw import ArraySplit


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
