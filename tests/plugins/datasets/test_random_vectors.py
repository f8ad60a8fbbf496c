from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from torchyard import RawData
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset


def quiet(*_: object) -> None:
    pass


def params(**chosen):
    return host().find("dataset", "random_vectors").params.model_validate(chosen)


def built(tmp_path: Path, **chosen) -> RawData:
    return params(**chosen).build(tmp_path)


def test_the_defaults_are_the_tutorials(tmp_path: Path) -> None:
    raw = built(tmp_path)
    assert raw.train.samples.shape == (100, 5)
    assert raw.test.samples.shape == (20, 5)
    assert len(raw.classes) == 2
    for split in (raw.train, raw.test):
        assert split.samples.dtype == np.float32
        assert split.labels.shape == split.samples.shape[:1]
        assert set(split.labels) == {0, 1}


def test_the_sizes_are_those_asked_for(tmp_path: Path) -> None:
    raw = built(tmp_path, size=7, length=3000, test_length=1500, num_classes=4)
    assert raw.train.samples.shape == (3000, 7)
    assert raw.test.samples.shape == (1500, 7)
    assert raw.classes == [f"direction {index}" for index in range(4)]
    for split in (raw.train, raw.test):
        # The standard normal distribution, and no class too rare to learn.
        assert np.abs(split.samples.mean(axis=0)).max() < 0.15
        np.testing.assert_allclose(np.cov(split.samples.T), np.eye(7), atol=0.15)
        assert np.bincount(split.labels, minlength=4).min() > len(split.labels) / 16


def test_the_seed_decides(tmp_path: Path) -> None:
    raw, again, other = (built(tmp_path, seed=seed) for seed in (3, 3, 4))
    for part in ("train", "test"):
        one, two, three = (getattr(each, part) for each in (raw, again, other))
        np.testing.assert_array_equal(one.samples, two.samples)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert not np.isin(one.samples, three.samples).any()
    assert not np.isin(raw.train.samples, raw.test.samples).any()


def test_more_training_samples_leave_the_test_as_it_is(tmp_path: Path) -> None:
    few, many = built(tmp_path), built(tmp_path, length=1000)
    np.testing.assert_array_equal(few.test.samples, many.test.samples)
    np.testing.assert_array_equal(few.test.labels, many.test.labels)
    np.testing.assert_array_equal(few.train.labels, many.train.labels[:100])


@pytest.mark.parametrize(("num_classes", "least"), [(2, 0.93), (5, 0.85)])
def test_a_linear_model_learns_the_rule(tmp_path: Path, num_classes: int, least: float) -> None:
    raw = built(tmp_path, length=500, test_length=500, num_classes=num_classes)
    torch.manual_seed(0)
    network = host().find("model", "linear").params().build((5,), num_classes)
    samples, labels = (torch.from_numpy(a) for a in (raw.train.samples, raw.train.labels))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(samples), labels).backward()
        optimizer.step()
    predicted = network(torch.from_numpy(raw.test.samples)).argmax(dim=1).numpy()
    assert (predicted == raw.test.labels).mean() >= least


def test_prepared_vectors_are_as_described(tmp_path: Path) -> None:
    chosen = params(size=6, num_classes=3)
    found = prepare_dataset("random_vectors", chosen, tmp_path, quiet)
    assert found.spec == chosen.describe()
    assert found.counts == {"train": 100, "test": 20}
    assert (found.shape, found.dtype) == ((6,), "float32")
    raw = chosen.build(tmp_path)
    np.testing.assert_array_equal(found.train.samples, raw.train.samples)
    np.testing.assert_array_equal(found.test.labels, raw.test.labels)
    other = prepare_dataset(
        "random_vectors", params(size=6, num_classes=3, seed=1), tmp_path, quiet
    )
    assert other.digest != found.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 1},
        {"length": 0},
        {"test_length": 0},
        {"num_classes": 1},
        {"seed": -1},
        {"size": 2.5},
        {"sise": 5},
    ],
)
def test_parameters_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        params(**wrong)
