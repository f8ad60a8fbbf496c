"""Evaluate the test images of an archive, from the weights on disk to accuracies, timed."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import pandas  # noqa: F401 - an import is not evaluation

from benchmarks.own.settings import configuration, nothing
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.pipelines.worker.stages import evaluation, preparation, training


def main(archive: str, cache: str) -> None:
    """Train one step, which gives weights, then evaluate them as the stage of a run does."""
    dataset = ["dataset.name=image_folder", f"dataset.path={archive}"]
    config = configuration("cifar10", [*dataset, "train.max_steps=1"])
    data = preparation.prepare(config, cache, emit=nothing)["folder"]
    with tempfile.TemporaryDirectory() as folder:
        weights = training.train(config, data, folder, emit=nothing)["weights"]
        target = Path(folder) / "predictions.npz"
        started = time.perf_counter()
        evaluation.evaluate(config, data, weights, str(target), emit=nothing)
        result = evaluate(Predictions.load(target), PreparedDataset.open(Path(data)).classes)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "images": result.images}))


if __name__ == "__main__":
    main(*sys.argv[1:])
