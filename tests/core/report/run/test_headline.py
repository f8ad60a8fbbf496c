"""The first lines of a report: the result, against the champion, and the verdict."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from tests.core.report.figures import guesses
from torchyard.core.data.predictions import PredictionTable
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.evaluation.paired_test import compare
from torchyard.core.report.run.headline import Headline, Rival

STARTED = datetime(2026, 11, 26, 12, 13, tzinfo=UTC)
TARGETS = np.arange(200) % 2


def headline(wrong: int, champions_wrong: int | None = None) -> Headline:
    """Of a run that is wrong about the first samples, beside a champion that is, too."""
    tables = []
    for count in filter(lambda each: each is not None, (champions_wrong, wrong)):
        predicted = np.where(np.arange(200) < count, 1 - TARGETS, TARGETS)
        made = guesses(predicted, TARGETS, 2)
        tables.append(PredictionTable(made, "run", "toy", ("cat", "dog"), "a" * 64))
    result = evaluate(tables[-1].predictions, ("cat", "dog"))
    rival = Rival("pets", 3, compare(*tables).overall) if len(tables) == 2 else None
    return Headline("toy", result, STARTED, "1a2b3c4d5e6f", rival)


def test_it_says_all_in_one_line() -> None:
    said = headline(4, 14).text
    assert said == (
        "toy · 98.0 % ± 2.1 · +5.0 against the champion (p = 0.002) · 26 Nov 2026 12:13 UTC · "
        "commit 1a2b3c4"
    )


def test_without_a_champion_and_a_commit_there_is_less_to_say() -> None:
    made = headline(4)
    assert made.against == ""
    assert made.text.startswith("toy · 98.0 % ± 2.1 · 26 Nov 2026")
    assert "On other samples of the same kind, expect 95.0 % to 99.2 %." in made.verdict


@pytest.mark.parametrize(
    ("wrong", "champions", "said"),
    [
        (4, 14, "It is better than the champion (version 3 of pets): +"),
        (14, 4, "It is worse than the champion (version 3 of pets): −"),
        (4, 6, "It cannot be told apart from the champion (version 3 of pets): 2 of 200"),
    ],
)
def test_the_verdict_is_that_of_the_test_on_the_same_samples(wrong, champions, said) -> None:
    made = headline(wrong, champions)
    assert made.verdict.startswith(said)
    found = made.rival.difference
    assert found.told_apart == (found.low > 0 or found.high < 0)


def test_the_verdict_names_the_weakest_class_and_the_most_frequent_mistake() -> None:
    assert headline(3).verdict.endswith(
        "Weakest class: cat, 98.0 %; most frequent mistake: cat taken for dog, in 2 of 100."
    )
    assert "confused" not in headline(0).verdict
