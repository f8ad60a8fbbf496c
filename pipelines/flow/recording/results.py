"""What a run records of its stages: metrics, tags, pictures and the audit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect.artifacts import create_table_artifact

from torchyard.core.audit.exclusion import found_audit
from torchyard.core.audit.findings import AUDIT_FILE
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence
from torchyard.core.evaluation.metrics import Evaluation
from torchyard.core.report.audit_page import audit_page
from torchyard.core.report.drawing import image_grids
from torchyard.core.report.drawing.matrix import confusion_matrix_figure
from torchyard.core.tracking.mlflow_format import BEST, class_metric_keys, event_metrics
from torchyard.core.tracking.queries.audits import AUDIT_PAGE, audit_metrics
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import EpochDone
from torchyard.core.training.run_log import RunLog
from torchyard.pipelines.flow.prefect_calls import tell

MOST_FINDINGS = 1000  # in Prefect's table; MLflow has all


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The value of each metric after each epoch, from the log in the run's folder."""
    found: dict[str, dict[int, float]] = {}
    for line in RunLog(folder).read():
        if line.kind == EpochDone.__name__:
            metrics, epoch = event_metrics(line.event)
            for key, value in metrics.items():
                found.setdefault(key, {})[epoch] = value
    return {key: sorted(points.items()) for key, points in found.items()}


def record_audit(record: RunRecord, config: RunConfig, prepared: PreparedDataset) -> list[str]:
    """Record the findings of the audit that the run asked for; returns what to say of them."""
    audit = found_audit(prepared)
    record.log_file(prepared.folder / AUDIT_FILE)
    record.log_text(audit_page(audit, prepared, prepared.name), AUDIT_PAGE)
    record.log_metrics(audit_metrics(audit), step=0)
    lines = [f"audit: {audit.summary(prepared.counts)}"]
    if config.dataset.exclude:
        count = len(audit.leaked_samples("train"))
        record.set_tags({"excluded": f"{count} training samples, by the audit"})
        lines.append(f"{count:,} training samples are left out, because another split has them")
    rows = [dataclasses.asdict(finding) for finding in audit.findings[:MOST_FINDINGS]]
    tell(
        "audit",
        lambda: create_table_artifact(key="audit", table=rows, description=lines[0]),
    )
    return lines


def record_training_batch(record: RunRecord, batch: Path, classes: Sequence[str]) -> None:
    """Draw the first training samples, augmentation included."""
    with np.load(batch, allow_pickle=False) as arrays:
        title = "Training images as the network sees them"
        figure = image_grids.labelled_images_figure(
            arrays["samples"], arrays["labels"], classes, title
        )
    record.log_figure(figure, "training_batch.png")


def record_training(record: RunRecord, trained: Mapping[str, Any]) -> None:
    """Record devices, epochs, speed, peak memory and the digest of the weights."""
    fit = trained["fit"]
    record.set_tags(
        trained["placement"]
        | trained["balance"]
        | {
            "weights_digest": trained["weights_digest"],
            "parameters": trained["parameters"],
            "checkpoints": str(record.folder),
            "stopped_early": str(fit["stopped_early"]).lower(),
        }
    )
    metrics = {f"train/{key}": fit[key] for key in ("epochs", "best_epoch", "steps")}
    metrics["train/mean_images_per_second"] = fit["images_per_second"]
    metrics["train/parameters"] = trained["parameters"]
    metrics |= {f"system/{key}": value for key, value in trained["peaks"].items()}
    # What has one value has step 0: MLflow draws a bar, and of any other step a curve of a dot.
    metrics |= kept_metrics(curves(record.folder), fit["best_epoch"])
    record.log_metrics(metrics, step=0)


def differing_note(record: RunRecord) -> str:
    """Which steps of the curves in MLflow are of an earlier training; "" where none are.

    On a CPU what is trained again gives the same. MLflow would show both values of a step.
    """
    if not record.flush() or not record.differing:
        return ""
    note = (
        f"steps were trained again, and not alike: MLflow keeps the first values of "
        f"{record.differing}; the report has the last"
    )
    record.set_tags({"trained_again": note})
    return note


def kept_metrics(
    of_epochs: Mapping[str, Sequence[tuple[int, float]]], epoch: int
) -> dict[str, float]:
    """The figures of the epoch whose weights were kept, as `best/val/loss` and so on."""
    return {
        f"{BEST}{key}": value
        for key, points in of_epochs.items()
        for number, value in points
        if number == epoch and (key.startswith("val/") or key in ("train/loss", "train/accuracy"))
    }


def overall_metrics(result: Evaluation) -> dict[str, float]:
    """The figures of the test split that are defined: its loss, its accuracy and so on."""
    figures = result.figures.items()
    return {f"test/{name}": value for name, value in figures if not math.isnan(value)}


def recorded_confidence(record: RunRecord) -> Confidence | None:
    """What the validation said of the probabilities; None without a validation split."""
    file = record.folder / CONFIDENCE_FILE
    return Confidence.read(file) if file.exists() else None


def class_metrics(result: Evaluation, classes: Sequence[str]) -> dict[str, float]:
    """Recall, precision and F1 of each class, where they are defined."""
    metrics = {}
    for column, name in (("accuracy", "recall"), ("precision", "precision"), ("f1", "f1")):
        keys = class_metric_keys(classes, f"test/{name}/")
        for key, value in zip(keys, result.per_class[column], strict=True):
            if not math.isnan(value):
                metrics[key] = float(value)
    return metrics


def record_pictures(
    record: RunRecord, prepared: PreparedDataset, predictions: Predictions, result: Evaluation
) -> None:
    """Draw the predictions: confusion matrix, test images, confident mistakes."""
    classes, samples = prepared.classes, prepared.test.samples
    record.log_figure(confusion_matrix_figure(result, classes), "confusion_matrix.png")
    shown = image_grids.test_images_figure(samples, predictions, classes)
    record.log_figure(shown, "test_images.png")
    mistakes = image_grids.confident_mistakes_figure(samples, predictions, classes)
    record.log_figure(mistakes, "confident_mistakes.png")
