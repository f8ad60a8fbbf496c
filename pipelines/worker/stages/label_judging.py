"""A run's own model judges the labels: trained anew on folds, it predicts what it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torchyard.core.audit.audit import with_label_errors
from torchyard.core.audit.exclusion import EXCLUDED_FILE, found_audit
from torchyard.core.audit.findings import AUDIT_FILE
from torchyard.core.audit.label_errors import LEAST_ACCURACY, judged
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import atomic_write
from torchyard.core.data.splitting import stratified_fold
from torchyard.core.errors import UserError
from torchyard.core.evaluation.predict import predict
from torchyard.core.hosting.host import host
from torchyard.core.training import device as devices
from torchyard.core.training.events import Emit
from torchyard.pipelines.worker.checks.config_check import Config
from torchyard.pipelines.worker.stages.evaluation import trained_network
from torchyard.pipelines.worker.stages.training import train

FOLDS = 3  # the run's training time, twice


def judge_labels(
    config: Config, data: str, folder: str, run: str, emit: Emit, weights: str | None = None
) -> dict[str, Any]:
    """Train a run's model on all but one fold of the training split, for each of three folds.

    What it doubts takes the place of the wrong labels in the audit of the data.

    Args:
        folder: for checkpoints; nothing in it is needed afterwards.
        run: its name, for the words that say who judged.
        weights: the file with those of a run that `model.weights` names.

    Returns:
        how: who judged, in words.

    Raises:
        UserError: the training split is too small to be divided.
    """
    prepared = PreparedDataset.open(Path(data))
    labels, groups = prepared.train.labels, prepared.train.groups
    # What a fold is trained without is in the file by which a resumed run excludes the same.
    config = {**config, "dataset": config["dataset"] | {"exclude": "audit"}}
    resolved = resolve_once(config, host())
    device = devices.choose_device(resolved.config.device)
    probabilities = np.zeros((len(labels), len(prepared.classes)), np.float32)
    for fold in range(FOLDS):
        try:
            _, part = stratified_fold(labels, FOLDS, fold, seed=0, groups=groups)
        except ValueError as error:
            raise UserError(f"--run: {error}") from None
        place = Path(folder) / f"fold-{fold}"
        place.mkdir()
        with atomic_write(place / EXCLUDED_FILE) as file:
            np.save(file, part, allow_pickle=False)
        done = train(config, data, str(place), emit, weights)
        network = trained_network(resolved, prepared, Path(done["weights"]), device)
        samples = prepared.train.samples
        found = predict(network, samples, labels, device=device, indices=part)
        probabilities[part] = found.probabilities
    doubted = judged(probabilities, labels, f"{FOLDS} trainings of {run}", LEAST_ACCURACY)
    audit = with_label_errors(found_audit(prepared), doubted, prepared.classes)
    audit.write(prepared.folder / AUDIT_FILE)
    return {"how": doubted.how}
