"""What a run recorded is read back."""

from __future__ import annotations

import pytest

from tests.recorded_runs import CLASSES
from torchyard.core.errors import UserError
from torchyard.core.tracking.queries.recorded import recorded_predictions


def test_predictions_are_read_back_from_the_store(client, runs) -> None:
    table = recorded_predictions(client, client.get_run(runs["good"]))
    assert table.dataset == "digits"
    assert table.classes == CLASSES
    with pytest.raises(UserError, match="has recorded no predictions: it is FAILED"):
        recorded_predictions(client, client.get_run(runs["failed"]))
