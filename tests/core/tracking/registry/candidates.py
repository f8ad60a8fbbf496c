"""What the tests of champions share: runs that have so many test samples right, and gates."""

from pathlib import Path

import numpy as np

from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.hosting.host import host
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.registry.versions import champion_of

SAMPLES = 40


def run(client, prepared, right, digest="digest"):
    """A finished run that has that many test samples right."""
    record = RunRecord.start(name_stem="run", parameters={}, tags={"dataset": "toy"})
    logits = np.zeros((SAMPLES, 2), np.float32)
    logits[:right, 0] = logits[right:, 1] = 1
    made = Predictions(logits, np.zeros(SAMPLES, np.int64))
    PredictionTable(made, record.name, "toy", ("a", "b"), digest).write(Path(PREDICTIONS_FILE))
    record.log_file(Path(PREDICTIONS_FILE))
    Path("exported.pt2").write_bytes(b"weights")
    metrics = {"test/accuracy": right / SAMPLES}
    record.log_model(Path("exported.pt2"), prepared, torch_version="2.15.0", metrics=metrics)
    record.finish("FINISHED")
    return client.get_run(record.run_id)


def gates(*chosen):
    return [(name, host().find("gate", name).params(**given)) for name, given in chosen]


BEATS = gates(("beats_champion", {"significance": None}))


def champion(client):
    found = champion_of(client, "toy")
    return None if found is None else (int(found.version), found.run_id)
