"""Events as JSON: each is the same on the other side."""

import json

import pytest

from torchyard.core.training.events import (
    EpochDone,
    GradientNorms,
    Progress,
    RunningLoss,
    StageProgress,
    TrainingBatch,
    as_plain,
    from_plain,
)


@pytest.mark.parametrize(
    "event",
    [
        Progress(1, 2, 3, 4.5),
        StageProgress("decoding", 1, 2),
        TrainingBatch("batch.npz"),
        RunningLoss(1, 0.5),
        GradientNorms(1, {"conv1": 0.5}),
        EpochDone(1, 2, 0.5, 0.9, None, None, 0.1, 100.0, 1.5),
    ],
)
def test_an_event_survives_json(event):
    assert from_plain(json.loads(json.dumps(as_plain(event)))) == event


@pytest.mark.parametrize("plain", [{}, {"kind": "Unknown"}, {"kind": "RunningLoss", "extra": 1}])
def test_what_is_not_an_event_is_refused(plain):
    with pytest.raises((KeyError, TypeError)):
        from_plain(plain)
