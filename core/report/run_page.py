"""The report of a run as an HTML page: metrics, mistakes, calibration, how to run it again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.evaluation.confidence import calibration, wilson_interval
from torchyard.core.evaluation.nearest import surest_mistakes
from torchyard.core.report.drawing.image_grids import drawable
from torchyard.core.report.drawing.matrix import page_matrix
from torchyard.core.report.drawing.plots import Curves, learning_curves, reliability_figure, svg
from torchyard.core.report.page import (
    MAX_EXACT_SIDE,
    data_uri,
    image_uri,
    render,
    small_image_uri,
)
from torchyard.core.report.run.confusions import confusions

if TYPE_CHECKING:
    import pandas as pd

    from torchyard.core.data.dataset import Labels, Samples
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.evaluation.nearest import Nearest
    from torchyard.core.report.run.headline import Headline

MAX_PAIRS, MAX_EXAMPLES = 8, 6
MAX_CLASSES = 20  # the weakest; the others are folded
MAX_BATCH = 12  # training images
MATRIX_PIXELS = 120  # at most, of an inch of the matrix: its texts are no larger than the page's
STAGES = ("prepare", "train", "evaluate")


def run_page(
    samples: Samples,
    predictions: Predictions,
    classes: Sequence[str],
    *,
    title: str,
    headline: Headline,
    recipe: Mapping[str, str],
    facts: Mapping[str, str | float],
    environment: Mapping[str, str],
    metrics: Mapping[str, float],
    curves: Curves,
    config: str,
    links: Mapping[str, str],
    batch: tuple[Samples, Labels] | None = None,
    nearest: tuple[Nearest, Samples] | None = None,
) -> str:
    """Make the page: HTML that needs no other file.

    Args:
        samples: of the test split; only those shown are read.
        predictions: of these samples.
        classes: the names, in the order of the class indices.
        title: the run's name.
        headline: what comes first, with the evaluation of the predictions.
        recipe: how it was trained, by what it is about.
        facts: further ones, in the order they are shown.
        environment: the machine and device it ran on.
        metrics: of the run; the stages' times and the memory are shown.
        config: the whole configuration as YAML.
        links: addresses by their names.
        batch: samples and labels as the training saw them first.
        nearest: the training samples that speak most for each of the surest mistakes, and all
            training samples, of which only those shown are read.
    """
    evaluation = headline.evaluation
    calibrated, confidence = calibration(predictions), predictions.confidence
    pictures = drawable(samples)

    def shown(indices: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "true": classes[predictions.targets[index]],
                "predicted": classes[predictions.predicted[index]],
                "confidence": confidence[index],
                "picture": image_uri(samples[index]) if pictures else None,
                "nearest": [],
            }
            for index in indices
        ]

    surest = np.argsort(-confidence, kind="stable")
    mistakes = shown(surest_mistakes(predictions).tolist())
    if nearest is not None and pictures:
        found, training = nearest
        for each in mistakes:
            each["nearest"] = [
                {"index": at, "likeness": likeness, "picture": small_image_uri(training[at])}
                for at, likeness in found.samples.get(each["index"], ())
            ]
    pairs = []
    for true, predicted, count in evaluation.most_confused(MAX_PAIRS):
        pair = (predictions.targets == true) & (predictions.predicted == predicted)
        share = count / evaluation.confusion[true].sum()
        examples = shown(surest[pair[surest]][:MAX_EXAMPLES])
        pairs.append((classes[true], classes[predicted], count, share, examples))
    matrix, box = page_matrix(evaluation, classes)
    rows, least = _classes(evaluation.per_class)
    seconds = {stage: metrics.get(f"time/{stage}_seconds", float("nan")) for stage in STAGES}
    return render(
        "run.html",
        title=title,
        headline=headline,
        evaluation=evaluation,
        recipe=recipe,
        batch=_pictured(*batch, classes) if batch and drawable(batch[0]) else [],
        facts=facts,
        environment=environment,
        classes=rows,
        most_classes=MAX_CLASSES,
        least=least,
        curves=learning_curves([curves]),
        validated=bool(curves.get("val/loss")),
        matrix=svg(matrix, "matrix"),
        matrix_width=round(MATRIX_PIXELS * matrix.get_figwidth()),
        confusions=confusions(samples, predictions, evaluation, classes, box),
        pairs=pairs,
        mistakes=mistakes,
        mistake_count=evaluation.images - evaluation.correct,
        nearest=nearest[0] if nearest else None,
        pictures=pictures,
        smooth=pictures and max(samples.shape[2:]) > MAX_EXACT_SIDE,
        calibration=calibrated,
        reliability=svg(reliability_figure(calibrated), "reliability"),
        seconds=seconds,
        longest=max([each for each in seconds.values() if each == each], default=1.0),
        memory={key: value for key, value in metrics.items() if key.startswith("system/")},
        config=config,
        config_file=data_uri(config.encode(), "text/yaml"),
        links=links,
    )


def _classes(per_class: pd.DataFrame) -> tuple[list[dict[Hashable, Any]], float]:
    """The rows of the classes, the weakest first, and where their bars begin: near the least."""
    table = per_class.sort_values("accuracy", kind="stable")
    low, high = wilson_interval(table["correct"], table["images"])
    found = low[~np.isnan(low)]
    least = float(np.floor(10 * found.min()) / 10) if len(found) else 0.0

    def along(values: Any) -> Any:
        return 100 * (values - least) / (1 - least)

    table = table.assign(low=low, high=high, bar=along(table["accuracy"]))
    table = table.assign(left=along(low), right=100 - along(high))
    return table.to_dict("records"), least


def _pictured(samples: Samples, labels: Labels, classes: Sequence[str]) -> list[dict[str, str]]:
    """The first training images with the names of their classes."""
    chosen = zip(samples[:MAX_BATCH], labels[:MAX_BATCH], strict=True)
    return [{"picture": small_image_uri(image), "label": classes[label]} for image, label in chosen]
