"""The report of a run as an HTML page: metrics, mistakes, calibration, how to run it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from torchyard.core.evaluation.confidence import calibration, wilson_interval
from torchyard.core.report.images import drawable
from torchyard.core.report.page import MAX_EXACT_SIDE, data_uri, image_uri, render
from torchyard.core.report.plots import Curves, learning_curve_figures, reliability_figure, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchyard.core.data.dataset import Samples
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.evaluation.metrics import Evaluation

MAX_PAIRS, MAX_EXAMPLES, MAX_MISTAKES = 8, 6, 24
STAGES = ("prepare", "train", "evaluate")


@dataclass(frozen=True)
class ShownSample:
    """One test sample on the page.

    Attributes:
        index: of the sample in the test split.
        true, predicted: names of classes.
        confidence: the probability of the predicted class, 0 to 1.
        picture: its image as a data URI; None where samples are not images.
    """

    index: int
    true: str
    predicted: str
    confidence: float
    picture: str | None


def run_page(
    samples: Samples,
    predictions: Predictions,
    evaluation: Evaluation,
    classes: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str | float],
    places: Mapping[str, str],
    metrics: Mapping[str, float],
    curves: Curves,
    matrix: Figure,
    config: str,
    links: Mapping[str, str],
) -> str:
    """Make the page: HTML that needs no other file.

    Args:
        samples: of the test split; only those shown are read.
        predictions: of these samples.
        evaluation: of the predictions.
        classes: the names, in the order of the class indices.
        title: the run's name.
        facts: of the run, in the order they are shown.
        places: the machine and device it ran on.
        metrics: of the run; the stages' times and the memory are shown.
        curves: of the training.
        matrix: the confusion matrix as `core/report/plots.py` draws it.
        config: the whole configuration as YAML.
        links: addresses by their names.
    """
    calibrated, confidence = calibration(predictions), predictions.confidence

    def shown(indices: Sequence[int]) -> list[ShownSample]:
        return [
            ShownSample(
                int(index),
                classes[predictions.targets[index]],
                classes[predictions.predicted[index]],
                float(confidence[index]),
                image_uri(samples[index]) if drawable(samples) else None,
            )
            for index in indices
        ]

    surest = np.argsort(-confidence, kind="stable")
    wrong = surest[(predictions.predicted != predictions.targets)[surest]]
    pairs = []
    for true, predicted, count in evaluation.most_confused(MAX_PAIRS):
        chosen = wrong[
            (predictions.targets[wrong] == true) & (predictions.predicted[wrong] == predicted)
        ]
        share = count / evaluation.confusion[true].sum()
        examples = shown(chosen[:MAX_EXAMPLES])
        pairs.append((classes[true], classes[predicted], count, share, examples))
    seconds = {stage: metrics.get(f"time/{stage}_seconds", float("nan")) for stage in STAGES}
    return render(
        "run.html",
        title=title,
        evaluation=evaluation,
        facts=facts,
        places=places,
        classes=_classes(evaluation),
        curves=[
            Markup(svg(figure, f"curves {number}"))
            for number, figure in enumerate(learning_curve_figures([curves]))
        ],
        validated=bool(curves.get("val/loss")),
        matrix=Markup(svg(matrix, "matrix")),
        pairs=pairs,
        mistakes=shown(wrong[:MAX_MISTAKES]),
        mistake_count=len(wrong),
        pictures=drawable(samples),
        smooth=drawable(samples) and max(samples.shape[2:]) > MAX_EXACT_SIDE,
        calibration=calibrated,
        reliability=Markup(svg(reliability_figure(calibrated), "reliability")),
        seconds=seconds,
        longest=max([each for each in seconds.values() if each == each], default=1.0),
        memory={key: value for key, value in metrics.items() if key.startswith("system/")},
        config=config,
        config_file=data_uri(config.encode(), "text/yaml"),
        links=links,
    )


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of the per-class table with intervals, the weakest first."""
    table = evaluation.per_class.copy()
    table["low"], table["high"] = wilson_interval(table["correct"], table["images"])
    table = table.sort_values("accuracy", kind="stable", na_position="last")
    return [{str(key): row[key] for key in row} for row in table.to_dict("records")]
