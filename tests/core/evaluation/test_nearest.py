"""The training samples that speak for a mistake: the nearest of the wrong class, in bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchyard.core.data.dataset import Split
from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation import nearest as module
from torchyard.core.evaluation.nearest import Nearest, nearest_training_samples, surest_mistakes
from torchyard.core.evaluation.predict import predict

CPU = torch.device("cpu")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def split(count: int, seed: int, indices=None) -> Split:
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(count, 1, 4, 4)).astype(np.float32)
    return Split(samples, rng.integers(0, 3, count), indices)


def searched(network, train: Split, *, seconds: float = 60.0, count: int = 3, test=None):
    test = test or split(40, 1)
    predictions = predict(network, test.samples, test.labels, device=CPU)
    return predictions, nearest_training_samples(
        network, predictions, test, train, device=CPU, count=count, seconds=seconds
    )


def test_they_are_the_most_alike_of_the_wrong_class_before_the_last_layer(network) -> None:
    train, test = split(600, 2), split(40, 1)
    predictions, found = searched(network, train, test=test)
    with torch.no_grad():
        ours, theirs = (
            nn.functional.normalize(network[:3](torch.from_numpy(each.samples)), dim=1)
            for each in (test, train)
        )
    assert found.layer == "3"
    assert list(found.samples) == surest_mistakes(predictions).tolist()
    for mistake, alike in found.samples.items():
        likeness = (theirs @ ours[mistake]).numpy()
        likeness[train.labels != predictions.predicted[mistake]] = -np.inf
        assert [at for at, _ in alike] == np.argsort(-likeness, kind="stable")[:3].tolist()
        assert [value for _, value in alike] == pytest.approx(np.sort(likeness)[::-1][:3], abs=1e-4)
    wrong = np.unique(predictions.predicted[surest_mistakes(predictions)])
    assert found.examined == found.candidates == np.isin(train.labels, wrong).sum()


def test_what_is_held_out_for_validation_is_no_training_sample(network) -> None:
    kept = np.arange(0, 600, 2)
    _, found = searched(network, split(600, 2, kept))
    assert {at % 2 for alike in found.samples.values() for at, _ in alike} == {0}


def test_the_search_ends_with_its_time_but_has_looked_at_some(network) -> None:
    _, found = searched(network, split(2000, 2), seconds=0.0)
    assert found.examined == module.CHUNK < found.candidates
    assert all(len(alike) == 3 for alike in found.samples.values())


def test_where_there_are_fewer_than_asked_for_all_are_shown(network) -> None:
    train = split(9, 2)
    predictions, found = searched(network, train, count=10)
    for mistake, alike in found.samples.items():
        assert len(alike) == (train.labels == predictions.predicted[mistake]).sum()


def test_without_a_mistake_or_a_layer_there_is_nothing_to_explain(network) -> None:
    test = split(40, 1)
    right = Predictions(np.eye(3, dtype=np.float32)[test.labels], test.labels)
    bounds = {"device": CPU, "count": 3, "seconds": 60.0}
    assert nearest_training_samples(network, right, test, split(9, 2), **bounds) is None
    pooled = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(3))
    assert searched(pooled, split(9, 2))[1] is None


def test_the_network_is_left_as_it_was(network) -> None:
    network.train()
    searched(network, split(100, 2))
    assert network.training
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())


def test_what_is_written_is_read(tmp_path) -> None:
    made = Nearest("fc", 10, 12, {7: [(3, 0.5), (1, 0.25)], 2: []})
    made.write(tmp_path / "nearest.json")
    assert Nearest.read(tmp_path / "nearest.json") == made
