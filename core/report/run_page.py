"""The report of a run as an HTML page: metrics, mistakes, calibration, how to run it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.evaluation.confidence import calibration, wilson_interval
from torchyard.core.report.image_grids import drawable
from torchyard.core.report.page import MAX_EXACT_SIDE, data_uri, image_uri, render
from torchyard.core.report.plots import Curves, learning_curves, reliability_figure, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchyard.core.data.dataset import Samples
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.evaluation.metrics import Evaluation

MAX_PAIRS, MAX_EXAMPLES, MAX_MISTAKES = 8, 6, 24
STAGES = ("prepare", "train", "evaluate")


def run_page(
    samples: Samples,
    predictions: Predictions,
    evaluation: Evaluation,
    classes: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str | float],
    environment: Mapping[str, str],
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
        facts: of the run, in the order they are shown.
        environment: the machine and device it ran on.
        metrics: of the run; the stages' times and the memory are shown.
        matrix: the confusion matrix as `core/report/plots.py` draws it.
        config: the whole configuration as YAML.
        links: addresses by their names.
    """
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
            }
            for index in indices
        ]

    surest = np.argsort(-confidence, kind="stable")
    wrong = surest[(predictions.predicted != predictions.targets)[surest]]
    pairs = []
    for true, predicted, count in evaluation.most_confused(MAX_PAIRS):
        pair = (predictions.targets == true) & (predictions.predicted == predicted)
        share = count / evaluation.confusion[true].sum()
        examples = shown(surest[pair[surest]][:MAX_EXAMPLES])
        pairs.append((classes[true], classes[predicted], count, share, examples))
    table = evaluation.per_class.sort_values("accuracy", kind="stable")
    low, high = wilson_interval(table["correct"], table["images"])
    seconds = {stage: metrics.get(f"time/{stage}_seconds", float("nan")) for stage in STAGES}
    return render(
        "run.html",
        title=title,
        evaluation=evaluation,
        facts=facts,
        environment=environment,
        classes=table.assign(low=low, high=high).to_dict("records"),
        curves=learning_curves([curves]),
        validated=bool(curves.get("val/loss")),
        matrix=svg(matrix, "matrix"),
        pairs=pairs,
        mistakes=shown(wrong[:MAX_MISTAKES]),
        mistake_count=len(wrong),
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
