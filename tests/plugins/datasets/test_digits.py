from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.plugins.datasets import digits
from torchyard.plugins.datasets.digits import Digits


def quiet(*_: object) -> None:
    pass


def test_digits_are_those_of_scikit_learn_at_their_own_size(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    whole = load_digits()
    raw = Digits(image_size=8).build(tmp_path)
    assert (len(raw.train.labels), len(raw.test.labels)) == (1438, 359)
    expected = {
        (i.tobytes(), t)
        for i, t in zip(np.rint(whole.images * 255 / 16), whole.target, strict=True)
    }
    got = {
        (image.astype(float).tobytes(), label)
        for split in (raw.train, raw.test)
        for (image,), label in zip(split.samples, split.labels, strict=True)
    }
    assert got == expected


@pytest.mark.parametrize("size", [8, 9, 32])
def test_scaling_is_torchs_bilinear(tmp_path: Path, size: int) -> None:
    import torch

    small = torch.from_numpy(Digits(image_size=8).build(tmp_path).train.samples).float() / 255 * 16
    expected = torch.nn.functional.interpolate(small.round(), size=size, mode="bilinear")
    scaled = Digits(image_size=size).build(tmp_path).train.samples
    assert scaled.shape == (1438, 1, size, size)
    np.testing.assert_allclose(scaled, expected.numpy() * 255 / 16, atol=0.501)


def test_where_the_table_has_moved_scikit_learn_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Digits().build(tmp_path)
    monkeypatch.setattr(digits, "TABLE", "moved.csv.gz")
    np.testing.assert_array_equal(Digits().build(tmp_path).train.samples, direct.train.samples)


def test_prepared_digits_are_as_described(tmp_path: Path) -> None:
    params = Digits()
    found = prepare_dataset("digits", params, tmp_path, quiet)
    assert found.spec == params.describe()
    assert found.classes == tuple("0123456789")
    assert np.bincount(found.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    other = prepare_dataset("digits", Digits(seed=1), tmp_path, quiet)
    assert other.counts == found.counts
    assert other.digest != found.digest


@pytest.mark.parametrize("wrong", [{"image_size": 7}, {"test_fraction": 1}, {"size": 32}])
def test_parameters_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Digits.model_validate(wrong)
