"""The interval of the mean over seeds: its special cases, and how often it holds the truth."""

import numpy as np
import pytest
from scipy.stats import t as student

from torchyard.core.errors import UserError
from torchyard.core.evaluation.confidence import wilson_interval
from torchyard.core.evaluation.seeds import over_seeds


def test_mean_spread_and_the_interval_of_student():
    correct = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    found = over_seeds(correct)
    accuracies = np.array([0.75, 0.5, 1.0])
    assert (found.seeds, found.images, found.mean) == (3, 4, 0.75)
    assert found.spread == pytest.approx(accuracies.std(ddof=1))
    half = student.ppf(0.975, 2) * accuracies.std(ddof=1) / 3**0.5
    assert found.over_seeds == pytest.approx((0.75 - half, 1.0))


def test_seeds_that_agree_leave_the_uncertainty_of_the_samples():
    row = np.arange(400) % 10 != 0
    found = over_seeds(np.stack([row] * 5))
    assert found.spread == 0
    assert found.over_seeds == (found.mean, found.mean)
    assert found.over_both == pytest.approx(
        [each[()] for each in wilson_interval(360, 400)], abs=5e-3
    )


def test_with_everything_right_the_interval_is_not_a_point():
    found = over_seeds(np.ones((3, 50), bool))
    assert found.over_both[1] == 1
    assert found.over_both[0] == pytest.approx(float(wilson_interval(50, 50)[0]))


def test_more_samples_and_more_seeds_make_it_narrower():
    def width(seeds, samples):
        found = over_seeds(drawn(np.random.default_rng(3), seeds, samples))
        return found.over_both[1] - found.over_both[0]

    assert width(5, 4000) < width(5, 400)
    assert width(20, 400) < width(3, 400)


def drawn(generator, seeds, samples, spread=0.02):
    """Seeds of different quality on samples of different difficulty; the truth is 0.8."""
    quality = generator.normal(0, spread, (seeds, 1))
    difficulty = generator.choice([0.3, -0.15], p=[1 / 3, 2 / 3], size=(1, samples)) * 0.6
    return generator.random((seeds, samples)) < 0.8 + quality - difficulty


def test_it_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = over_seeds(drawn(generator, 5, 300)).over_both
        held += low <= 0.8 <= high
    assert 0.92 <= held / 400 <= 0.99


def test_fewer_than_two_have_no_interval():
    for shape in ((1, 5), (5, 1)):
        with pytest.raises(UserError, match="needs 2 seeds and 2 samples"):
            over_seeds(np.ones(shape, bool))
