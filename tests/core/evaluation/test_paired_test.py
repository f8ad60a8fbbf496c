"""The difference of two runs: agreement with scipy, coverage, and what does not pair."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data.predictions import Predictions, PredictionTable
from torchyard.core.errors import UserError
from torchyard.core.evaluation.confidence import wilson_interval
from torchyard.core.evaluation.paired_test import compare

NAMES = ("cat", "<b>dog</b>", "猫")


def table(predicted, targets, classes=NAMES, run="one #1", digest="a" * 64) -> PredictionTable:
    logits = 5 * np.eye(len(classes), dtype=np.float32)[np.asarray(predicted, int)]
    made = Predictions(logits, np.asarray(targets, np.int64))
    return PredictionTable(made, run, "toy", tuple(classes), digest)


def with_outcomes(only_first: int, only_second: int, both: int, neither: int):
    """Two runs on one class, 0, that are right and wrong this often."""
    first = [0] * only_first + [1] * only_second + [0] * both + [1] * neither
    second = [1] * only_first + [0] * only_second + [0] * both + [1] * neither
    targets = [0] * len(first)
    return table(first, targets), table(second, targets)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 99), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_p_value_is_the_two_sided_binomial_test_of_the_discordant(b, c, both, neither) -> None:
    from scipy.stats import binomtest

    found = compare(*with_outcomes(b, c, both, neither)).overall
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    if b + c + both + neither == 0:
        assert math.isnan(found.p_value)
        return
    assert found.p_value == pytest.approx(expected, abs=1e-12)
    assert (found.only_first, found.only_second) == (b, c)
    assert found.difference == pytest.approx(found.second - found.first)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_the_interval_leaves_out_no_difference_exactly_where_the_test_does(b, c, both) -> None:
    found = compare(*with_outcomes(b, c, both, 1)).overall
    assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05) == found.told_apart
    assert -1 <= found.low <= found.difference <= found.high <= 1


def test_the_interval_is_about_that_of_scipys_paired_bootstrap() -> None:
    from scipy.stats import bootstrap

    first, second = with_outcomes(30, 55, 250, 24)
    found = compare(first, second).overall
    right = [made.predictions.predicted == 0 for made in (first, second)]
    expected = bootstrap(
        [each.astype(float) for each in right],
        lambda a, b, axis: (b - a).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)
    assert found.difference == pytest.approx(25 / 359)


@pytest.mark.parametrize(
    ("images", "only_first", "only_second"),
    [(500, 0.05, 0.09), (359, 0, 0.03), (10_000, 0.01, 0.05), (2000, 0.1, 0.1)],
)
def test_nineteen_of_twenty_intervals_hold_the_true_difference(
    images, only_first, only_second
) -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        drawn = rng.multinomial(images, [only_first, only_second, 1 - only_first - only_second])
        found = compare(*with_outcomes(*drawn, 0)).overall
        held += found.low <= only_second - only_first <= found.high
    assert 0.93 <= held / 400 <= 0.998


def test_swapping_the_runs_turns_the_difference_round() -> None:
    first, second = with_outcomes(3, 9, 50, 5)
    one, other = compare(first, second).overall, compare(second, first).overall
    assert one.difference == -other.difference > 0
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert one.p_value == other.p_value
    assert compare(first, second).overall == one


def test_each_class_has_its_own_row_and_one_without_samples_says_nothing() -> None:
    targets = [0] * 30 + [1] * 20
    first = table([1] * 12 + [0] * 18 + [1] * 20, targets)
    second = table([0] * 30 + [1] * 18 + [0] * 2, targets)
    rows = compare(first, second).per_class
    assert rows["class"].tolist() == list(NAMES)
    assert rows["images"].tolist() == [30, 20, 0]
    assert rows["difference"].tolist()[:2] == pytest.approx([0.4, -0.1])
    assert rows.loc[0, "low"] > 0.15
    assert rows.loc[0, "p_value"] == pytest.approx(2 * 0.5**12)
    assert rows.loc[0, "p_adjusted"] == pytest.approx(4 * 0.5**12)
    assert rows.loc[1, "p_adjusted"] == rows.loc[1, "p_value"] == 0.5
    assert rows.loc[2].drop(["class", "images", "only_first", "only_second"]).isna().all()


def test_of_a_hundred_equal_classes_none_is_called_different() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(100)]
    targets = np.repeat(np.arange(100), 50)
    made = [
        table(np.where(rng.random(5000) < 0.7, targets, (targets + 1) % 100), targets, names)
        for _ in range(2)
    ]
    rows = compare(*made).per_class
    assert (rows["p_value"] < 0.05).any()
    assert (rows["p_adjusted"] > 0.05).all()


def test_runs_that_agree_everywhere_may_differ_on_other_samples() -> None:
    one, _ = with_outcomes(2, 3, 30, 1)
    found = compare(one, one).overall
    assert (found.difference, found.p_value) == (0, 1)
    assert found.high == -found.low == pytest.approx(wilson_interval(0, 36)[1])


def test_runs_of_different_test_data_are_refused_by_name() -> None:
    first, second = with_outcomes(2, 3, 30, 1)
    second = dataclasses.replace(second, run="two #2", dataset="other", test_digest="b" * 64)
    with pytest.raises(UserError) as caught:
        compare(first, second)
    for part in ("one #1 on toy", "two #2 on other", "36 samples", "aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        assert part in str(caught.value)
