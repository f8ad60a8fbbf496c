"""What docs/promotion.md says of a year of nightly runs is so, and its drawing is up to date."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from torchyard import PredictionTable
from torchyard.core.data.predictions import Predictions

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def year():
    return runpy.run_path(str(DOCS / "nightly_year.py"))


def test_the_drawing_is_what_its_program_draws(year):
    text = (DOCS / "images" / "nightly_year.svg").read_text("utf-8")
    assert text == year["drawing"](), "draw it anew: make nightly-year"


def test_a_year_of_equal_candidates_is_hardly_ever_fooled(year):
    assert year["false_promotions"](1500) <= 0.05


@pytest.mark.parametrize("number", [1, 365, 700])
def test_a_candidate_that_is_a_point_better_is_promoted(year, number):
    assert year["power"](number, 4000, seed=1) >= 0.8


def test_the_simulation_decides_as_the_gate_does(year):
    """The gate's own verdict, on tables of predictions, at the edge of what passes."""
    verdicts = []
    for own, lost in ((260, 175), (230, 150), (14, 0), (13, 0), (150, 230)):
        targets = np.zeros(10_000, np.int64)
        champion, candidate = (np.ones((10_000, 2), np.float32) for _ in range(2))
        candidate[:own, 1] = 0  # it alone has these right, class 0
        candidate[own:, 0] = champion[:, 0] = 0
        champion[own : own + lost, 0], champion[own : own + lost, 1] = 1, 0
        tables = [
            PredictionTable(Predictions(logits, targets), "r", "toy", ("a", "b"), "one")
            for logits in (candidate, champion)
        ]
        for number in (1, 365, 500):
            verdict = year["GATE"].with_ask(number).build()(*tables).passed
            level = np.array([year["GATE"].level(number)])
            assert verdict == year["passes"](np.array([own]), np.array([lost]), level)[0]
            verdicts.append(verdict)
    assert {True, False} <= set(verdicts)
