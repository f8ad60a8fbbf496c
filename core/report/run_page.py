"""The report of a run as a page: results, mistakes, calibration, and how to have it again."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from torchyard.core.evaluation.confidence import calibration, wilson_interval
from torchyard.core.report.formatting import EXACT, image_uri, render
from torchyard.core.report.images import drawable
from torchyard.core.report.plots import Curves, learning_curves, reliability, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchyard.core.data.dataset import Samples
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.evaluation.metrics import Evaluation

PAIRS, EXAMPLES, MISTAKES = 8, 6, 24
STAGES = ("prepare", "train", "evaluate")


@dataclass(frozen=True)
class Shown:
    """One test sample on the page.

    Attributes:
        index: its place in the test split.
        true, predicted: names of classes.
        confidence: the probability of the predicted class.
        picture: the address that holds its image; None for what is no image.
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
    """The page as HTML that needs no other file.

    Args:
        samples: of the test split; only those shown are read.
        predictions: of these samples.
        evaluation: what the predictions add up to.
        classes: the names, in the order of the class indices.
        title: the run's name.
        facts: what to state of the run, in this order.
        places: where it ran.
        metrics: the run's, of which the stages' times and the memory are shown.
        curves: of the training.
        matrix: the confusion matrix as `core/report/images.py` draws it.
        config: the whole configuration as YAML.
        links: names and addresses.
    """
    correct, images = int(evaluation.confusion.trace()), evaluation.images
    low, high = (float(bound) for bound in wilson_interval(correct, images))
    sure, confidence = calibration(predictions), predictions.confidence

    def shown(indices: Sequence[int]) -> list[Shown]:
        return [
            Shown(
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
    for true, guess, count in evaluation.most_confused(PAIRS):
        chosen = wrong[
            (predictions.targets[wrong] == true) & (predictions.predicted[wrong] == guess)
        ]
        share = count / evaluation.confusion[true].sum()
        pairs.append((classes[true], classes[guess], count, share, shown(chosen[:EXAMPLES])))
    seconds = {stage: metrics.get(f"time/{stage}_seconds", float("nan")) for stage in STAGES}
    return render(
        "run.html",
        title=title,
        evaluation=evaluation,
        correct=correct,
        low=low,
        high=high,
        facts=facts,
        places=places,
        classes=_classes(evaluation),
        curves=[
            Markup(svg(figure, f"curves {number}"))
            for number, figure in enumerate(learning_curves([curves]))
        ],
        validated=bool(curves.get("val/loss")),
        matrix=Markup(svg(matrix, "matrix")),
        pairs=pairs,
        mistakes=shown(wrong[:MISTAKES]),
        mistaken=len(wrong),
        pictures=drawable(samples),
        smooth=drawable(samples) and max(samples.shape[2:]) > EXACT,
        calibration=sure,
        reliability=Markup(svg(reliability(sure), "reliability")),
        seconds=seconds,
        longest=max([each for each in seconds.values() if each == each], default=1.0),
        memory={key: value for key, value in metrics.items() if key.startswith("system/")},
        config=config,
        config_file=f"data:text/yaml;base64,{base64.b64encode(config.encode()).decode()}",
        links=links,
    )


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of the per-class table with intervals, the weakest first."""
    table = evaluation.per_class.copy()
    table["low"], table["high"] = wilson_interval(table["correct"], table["images"])
    table = table.sort_values("accuracy", kind="stable", na_position="last")
    return [{str(key): row[key] for key in row} for row in table.to_dict("records")]
