"""A store with runs on two data sets, one that failed, and one of another program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.tracking.record import RunRecord

CLASSES = ("cat", "<script>alert(1)</script>", "猫 🐈")


@dataclass(frozen=True)
class RecordedRuns:
    """The store's client, the records of our runs by name, and the ids of all runs."""

    client: MlflowClient
    records: dict[str, RunRecord]
    ids: dict[str, str]

    @classmethod
    def make(cls, folder: Path) -> RecordedRuns:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
            patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
            records = {
                "good": record(
                    *(folder, "lenet", "digits", 0.9),
                    lr=3e-5,
                    train={"epochs": 10, "compile": False, "threads": None, "parallel": "none"},
                    kept=1.0,
                ),
                "better": record(
                    *(folder, "resnet18", "digits", 0.95),
                    lr=0.01,
                    train={"epochs": 9, "compile": True},
                    kept=0.1,
                ),
                "other": record(folder, "lenet", "cifar10", 0.99),
                "failed": record(folder, "lenet", "digits", None),
            }
            client = records["good"]._client
            foreign = client.create_run("0", run_name='it\'s not "ours"').info.run_id
            client.set_terminated(foreign)
            client.create_registered_model("sorter")
            for name in ("good", "better"):
                version = client.create_model_version(
                    "sorter", "somewhere", records[name].run_id, tags={"from": name}
                )
            client.set_registered_model_alias("sorter", "champion", "1")
            client.set_registered_model_alias("sorter", "challenger", version.version)
        ids = {name: each.run_id for name, each in records.items()} | {"foreign": foreign}
        return cls(client, records, ids)


def record(folder: Path, model: str, dataset: str, accuracy: float | None, **more):
    """A run as a training leaves it; without an accuracy it failed."""
    lr, kept = more.pop("lr", 0.1), more.pop("kept", None)
    begun = RunRecord.start(
        name_stem=f"{model}·sgd·{dataset}",
        parameters={"model": {"name": model}, "optimizer": {"name": "sgd", "lr": lr}, **more},
        tags={"model": model, "dataset": dataset, "optimizer": "sgd", "device": "cpu"},
    )
    begun.log_metrics({"train/base_learning_rate": lr}, step=0)
    if accuracy is None:
        begun.finish("FAILED", "the loss became nan")
        return begun
    for epoch in (1, 2):
        begun.log_metrics({"train/loss": 1 / epoch, "train/accuracy": accuracy / 2}, step=epoch)
        if kept is not None:
            begun.log_metrics({"val/loss": kept * epoch}, step=epoch)
    if kept is not None:
        begun.log_metrics({"best/val/loss": kept}, step=1)
    targets = np.arange(200) % 2
    wrong = np.arange(200) >= 200 * accuracy
    logits = 5 * np.eye(3, dtype=np.float32)[np.where(wrong, 2, targets)]
    begun.log_metrics({"test/accuracy": accuracy, "test/worst_recall": accuracy}, step=2)
    begun.log_metrics({"time/train_seconds": 100 * lr}, step=0)
    begun.set_tags({"worst_class": CLASSES[1]})
    PredictionTable(
        Predictions(logits, targets), begun.name, dataset, CLASSES, dataset.ljust(64, "0")
    ).write(folder / PREDICTIONS_FILE)
    begun.log_file(folder / PREDICTIONS_FILE)
    begun.finish("FINISHED")
    return begun
