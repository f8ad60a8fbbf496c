"""Plots of metrics: what is on their axes."""

import numpy as np
import pytest

from tests.core.report.figures import drawn, guesses, texts
from torchyard.core.evaluation.confidence import calibration
from torchyard.core.report.drawing import plots


def test_a_reliability_diagram_shows_accuracy_by_confidence_from_0_to_1():
    made = guesses([0] * 10, [0] * 7 + [1] * 3, 2)  # all equally sure
    figure = plots.reliability_figure(calibration(made))
    drawn(figure)
    lower, upper = figure.axes
    assert (upper.get_xlim(), upper.get_ylim(), lower.get_xlim()) == ((0, 1),) * 3
    [bar] = upper.patches
    assert bar.get_height() == pytest.approx(0.7)
    assert bar.get_x() < float(made.confidence[0]) < bar.get_x() + bar.get_width()
    assert sum(each.get_height() for each in lower.patches) == 10


def test_accuracy_is_drawn_with_its_interval_against_seconds_of_training():
    runs = [(10.0, 0.9, 0.85, 0.92), (100.0, 0.95, 0.94, 0.96), (np.nan, 0.5, 0.4, 0.6)]
    figure = plots.accuracy_cost_figure(runs)
    drawn(figure)
    [axes] = figure.axes
    bars = [each.get_segments()[0] for each in axes.collections]
    np.testing.assert_allclose(bars[0], [[10, 0.85], [10, 0.92]])
    np.testing.assert_allclose(bars[1], [[100, 0.94], [100, 0.96]])
    low, high = axes.get_xlim()
    assert 5 < low < 10
    assert 100 < high < 200
    assert {"10", "100", "90 %"} <= set(texts(figure))


def test_the_suggested_learning_rate_is_marked_on_the_curve():
    figure = plots.learning_rate_figure([1e-4, 1e-3, 1e-2], [2.0, 1.0, 3.0], 1e-3)
    drawn(figure)
    [axes] = figure.axes
    curve, mark = (line.get_xydata() for line in axes.lines)
    assert curve.tolist() == [[1e-4, 2.0], [1e-3, 1.0], [1e-2, 3.0]]
    assert mark[:, 0].tolist() == [1e-3, 1e-3]
    assert axes.get_xscale() == "log"
    assert "loss; suggested: 0.001" in texts(figure)
