"""Plots of metrics, drawn by matplotlib; as SVG they take the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from torchyard.core.report.drawing.style import INK, LINE, MUTED, WRONG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchyard.core.evaluation.confidence import Calibration


# Okabe and Ito's colours, which every kind of colour vision tells apart: one per run.
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#8c6bb1")
# The CSS variable of each colour: the page's style gives it a light and a dark value.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    WRONG: "--wrong",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
# Left, bottom, width and height of the axes: finding them by layout doubles the time of drawing.
AXES = (0.13, 0.16, 0.85, 0.74)

# The (step, value) pairs of each metric key.
Curves = Mapping[str, Sequence[tuple[int, float]]]


def svg(figure: Figure, name: str) -> Markup:
    """Save a figure as an <svg> element that takes colours and font from the page.

    Args:
        figure: drawn with the colours of `SERIES` and of `core/report/drawing/style.py`.
        name: unique on the page: the ids within the element depend on it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # else the same in every figure
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)


def learning_curves(runs: Sequence[Curves]) -> list[Markup]:
    """Draw loss and accuracy by epoch: training thin, validation thick, one colour per run.

    Returns:
        Two `svg`; none where no run has trained an epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = []
    for name in ("loss", "accuracy") if any(run.get("train/loss") for run in runs) else ():
        figure = Figure(figsize=(4.6, 2.9))
        axes = figure.add_axes(AXES)
        for colour, run in zip(cycle(SERIES), runs, strict=False):
            for part, width in (("train", 1.0), ("val", 2.2)):
                points = np.array(run.get(f"{part}/{name}") or np.empty((0, 2)))
                marker = "o" if len(points) == 1 else None
                axes.plot(*points.T, color=colour, linewidth=width, marker=marker, markersize=3)
        _plain(axes, x="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(_percent)
        curves.append(svg(figure, f"curve of {name}"))
    return curves


def learning_rate_figure(
    rates: Sequence[float], losses: Sequence[float], suggestion: float
) -> Figure:
    """Draw the smoothed loss by the learning rate, and the rate that is suggested."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4))
    axes = figure.add_axes(AXES)
    axes.plot(rates, losses, color=SERIES[0], linewidth=2)
    axes.axvline(suggestion, color=MUTED, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    _plain(axes, x="learning rate", title=f"loss; suggested: {suggestion:.2g}")
    return figure


def reliability_figure(calibration: Calibration) -> Figure:
    """Draw a reliability diagram: accuracy by confidence, above the samples of each bin.

    A bin is the paler, the fewer samples are in it.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2))
    lower = figure.add_axes((0.16, 0.11, 0.8, 0.2))
    upper = figure.add_axes((0.16, 0.37, 0.8, 0.6), sharex=lower)
    width = calibration.edges[1] - calibration.edges[0]
    middles, filled = calibration.edges[:-1] + width / 2, calibration.images > 0
    weight = np.sqrt(calibration.images / max(1, calibration.images.max()))

    def faded(colour: str) -> list[tuple[float, ...]]:
        return [(*to_rgb(colour), max(0.15, each)) for each in weight[filled]]

    bars: dict[str, Any] = {"width": 0.92 * width, "linewidth": 0}
    upper.bar(middles[filled], calibration.accuracy[filled], color=faded(SERIES[0]), **bars)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    means = calibration.confidence[filled], calibration.accuracy[filled]
    upper.scatter(*means, s=10, c=faded(WRONG), linewidths=0, zorder=3)
    upper.set(ylim=(0, 1), xlim=(0, 1))
    lower.bar(middles, calibration.images, color=SERIES[0], **bars)
    _plain(upper, y="accuracy")
    _plain(lower, x="confidence", y="samples")
    upper.tick_params(labelbottom=False)
    upper.yaxis.set_major_formatter(_percent)
    lower.xaxis.set_major_formatter(_percent)
    return figure


def accuracy_cost_figure(runs: Sequence[Sequence[float]]) -> Figure:
    """Draw test accuracy, with its interval, against seconds of training; one colour per run.

    Args:
        runs: (seconds, accuracy, low, high) of each; one with NaN is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """The same ticks are labelled, with `0.6` in place of `6e-01`."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = Figure(figsize=(5.5, 3))
    axes = figure.add_axes(AXES)
    for colour, (seconds, accuracy, low, high) in zip(cycle(SERIES), runs, strict=False):
        reach = [[accuracy - low], [high - accuracy]]
        axes.errorbar(seconds, accuracy, yerr=reach, fmt="o", color=colour, capsize=3)
    _plain(axes, x="training, seconds", title="test accuracy")
    axes.set_xscale("log")
    if known := [seconds for seconds, accuracy, *_ in runs if seconds + accuracy > 0]:
        axes.set_xlim(min(known) / 1.3, max(known) * 1.3)
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(Plain(minor_thresholds=(1.5, 0.5)))
    axes.yaxis.set_major_formatter(_percent)
    return figure


def _percent(value: float, _: float) -> str:
    return f"{100 * value:g} %"


def _plain(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(which="both", labelcolor=MUTED, labelsize=8, length=3, color=LINE)
