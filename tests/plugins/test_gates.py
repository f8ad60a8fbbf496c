"""Gates judge what runs predicted of their test samples."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from torchyard.core.data.predictions import Predictions, PredictionTable
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.testing import PluginFault, assert_gate_plugin

CLASSES = ("ant", "bee", "cow")


def gate(name, **parameters):
    return host().find("gate", name).params(**parameters)


def table(targets, predicted, digest="one"):
    logits = np.eye(len(CLASSES), dtype=np.float32)[list(predicted)]
    made = Predictions(logits, np.array(list(targets), dtype=np.int64))
    return PredictionTable(made, "a run", "toy", CLASSES, digest)


def mistaken(right, wrong):
    """A table of `right` samples predicted rightly and then `wrong` wrongly."""
    return table([0] * (right + wrong), [0] * right + [1] * wrong)


@pytest.mark.parametrize(
    "params",
    [
        gate("min_accuracy", threshold=1),
        gate("min_class_recall", threshold=0.5),
        gate("beats_champion"),
        gate("min_metric", metric="macro_f1", threshold=0.9),
        gate("max_metric", metric="loss", threshold=0.1),
        gate("beats_champion", margin=0.2, significance=0.01),
    ],
    ids=repr,
)
def test_every_gate_passes_the_kit(params):
    assert_gate_plugin(params)


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0, 1))
def test_the_accuracy_asked_for_is_enough(right, wrong, threshold):
    if right + wrong == 0:
        return
    verdict = gate("min_accuracy", threshold=threshold).build()(mistaken(right, wrong), None)
    assert verdict.passed == (right / (right + wrong) >= threshold)
    assert verdict.figures == {"accuracy": right / (right + wrong)}


def test_the_worst_class_decides_and_a_class_without_samples_does_not():
    judge = gate("min_class_recall", threshold=0.5).build()
    half = table([0, 0, 1, 1], [0, 0, 1, 0])
    assert judge(half, None).passed
    verdict = judge(table([0, 0, 1, 1], [0, 0, 0, 0]), None)
    assert not verdict.passed
    assert verdict.reason == "0.00% in the worst class, bee; 50.00% are required"
    both = judge(table([0, 0, 1, 1], [1, 1, 0, 0]), None)
    assert both.reason.startswith("2 of 2 classes are below: 0.00% in the worst class, ant")


def test_a_figure_is_held_against_its_limit():
    def verdict(name, threshold, **figures):
        made = dataclasses.replace(mistaken(1, 1), figures=figures)
        return gate(name, metric="top_k/3", threshold=threshold).build()(made, None)

    assert verdict("min_metric", 0.5, **{"top_k/3": 0.5}).passed
    below = verdict("min_metric", 0.6, **{"top_k/3": 0.5})
    assert (below.passed, below.figures) == (False, {"top_k/3": 0.5})
    assert below.reason == "top_k/3 is 0.5, at least 0.6 is required"
    assert verdict("max_metric", 0.5, **{"top_k/3": 0.5}).passed
    assert not verdict("max_metric", 0.4, **{"top_k/3": 0.5}).passed
    assert verdict("min_metric", 0.5).reason == "top_k/3 is not defined for these predictions"


def test_an_equal_model_does_not_beat_the_champion():
    judge = gate("beats_champion", significance=None).build()
    assert judge(mistaken(7, 3), None).passed
    assert not judge(mistaken(7, 3), mistaken(7, 3)).passed
    assert judge(mistaken(8, 2), mistaken(7, 3)).passed
    verdict = judge(mistaken(7, 3), mistaken(8, 2))
    assert not verdict.passed
    assert "70.00% against the champion's 80.00%" in verdict.reason
    assert "0 samples that only it has right, 1 that only the champion has" in verdict.reason


@pytest.mark.parametrize(("ahead", "passed"), [(1, False), (2, True), (3, True)])
def test_the_margin_is_met_exactly(ahead, passed):
    # 0.3 - 0.1 is less than 0.2 in floating point.
    champion, candidate = mistaken(1, 9), mistaken(1 + ahead, 9 - ahead)
    assert (
        gate("beats_champion", margin=0.2, significance=None).build()(candidate, champion).passed
        is passed
    )


def test_a_difference_that_chance_explains_is_not_enough_with_significance():
    judge = gate("beats_champion", significance=0.05, asks=None).build()
    # Four samples of four: p = 1 / 2^4 = 0.0625; five of five: 0.03125.
    verdict = judge(mistaken(54, 46), mistaken(50, 50))
    assert not verdict.passed
    assert verdict.figures["p_value"] == pytest.approx(0.0625)
    assert "p = 0.062, where at most 0.05 is allowed" in verdict.reason
    assert judge(mistaken(55, 45), mistaken(50, 50)).passed
    # A significantly worse one is no better.
    assert not judge(mistaken(40, 60), mistaken(50, 50)).passed


def test_the_more_often_the_test_set_was_asked_the_clearer_it_must_be():
    by_default = gate("beats_champion")
    # Fourteen samples of fourteen: p = 0.000061; thirteen: 0.00012, and 0.00011 are allowed.
    for number, ahead, passed in ((1, 13, False), (1, 14, True), (365, 14, True), (366, 14, False)):
        judge = by_default.with_ask(number).build()
        assert judge(mistaken(50 + ahead, 50 - ahead), mistaken(50, 50)).passed is passed
    once = gate("beats_champion", asks=None)
    assert once.with_ask(1000) == once  # each time alone
    lead = gate("beats_champion", significance=None)
    assert lead.with_ask(1000).build()(mistaken(51, 49), mistaken(50, 50)).passed


@given(st.floats(1e-4, 0.5), st.integers(1, 1000))
def test_all_asks_together_spend_the_significance_and_no_more(significance, asks):
    params = gate("beats_champion", significance=significance, asks=asks)
    levels = [params.level(number) for number in range(1, 3 * asks + 10)]
    assert levels == sorted(levels, reverse=True)
    assert 0.8 * significance < sum(levels) < significance
    rest = 0.2 * significance * asks / len(levels)  # of all that follow, which telescopes
    assert sum(levels) + rest == pytest.approx(significance)


def test_other_test_samples_are_not_compared():
    with pytest.raises(UserError, match="tested on different samples"):
        gate("beats_champion").build()(table([0], [0]), table([0], [0], "other"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("min_accuracy", {}),
        ("min_accuracy", {"threshold": 90}),
        ("beats_champion", {"margin": -0.1}),
        ("beats_champion", {"significance": 0}),
    ],
)
def test_senseless_parameters_are_refused(name, parameters):
    with pytest.raises(ValidationError):
        gate(name, **parameters)


def test_the_kit_finds_a_gate_that_draws_lots():
    from torchyard import GateParams, Verdict

    class Lottery(GateParams):
        """Passes now and then."""

        def build(self):
            draws = iter(range(9))
            return lambda candidate, champion: Verdict(True, f"drew {next(draws)}")

    class Moody(GateParams):
        """Passes the first it ever sees."""

        def build(self):
            _seen.append(1)
            return lambda candidate, champion: Verdict(True, f"number {len(_seen)}")

    class Silent(GateParams):
        """Says nothing."""

        def build(self):
            return lambda candidate, champion: Verdict(True, " ")

    class Strict(GateParams):
        """Refuses everybody."""

        def build(self):
            return lambda candidate, champion: Verdict(False, "no")

    _seen = []
    assert_gate_plugin(Lottery())  # made anew it draws the same
    for params, problem in (
        (Moody(), "judges the same model differently"),
        (Silent(), "has no reason"),
        (Strict(), "refuses who is right: no"),
    ):
        with pytest.raises(PluginFault, match=problem):
            assert_gate_plugin(params)


@pytest.mark.parametrize(
    ("name", "figure"), [("max_leaked", "leaked"), ("max_label_errors", "label_errors")]
)
def test_a_gate_of_the_audit_refuses_more_than_its_share_and_what_was_not_audited(name, figure):
    chosen = gate(name, threshold=0.01)
    assert chosen.figures_used() == (figure,)
    judge = chosen.build()
    for share, passed in ((0.0, True), (0.01, True), (0.011, False)):
        candidate = dataclasses.replace(mistaken(9, 1), figures={figure: share})
        assert judge(candidate, None).passed is passed
    refusal = judge(mistaken(9, 1), None)
    assert not refusal.passed
    assert refusal.reason == f"{figure} is not defined for these predictions"
