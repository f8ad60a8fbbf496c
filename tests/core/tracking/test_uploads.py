"""Uploads that are cut short."""

import shutil
from pathlib import Path

import pytest

from tests.core.tracking.runs import model_of
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError
from torchyard.core.tracking import mlflow_format
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.run_log import Line


def test_a_model_whose_upload_was_cut_short_is_logged_once(
    record: RunRecord, prepared: PreparedDataset, exported: Path, monkeypatch
) -> None:
    with pytest.raises(RunError, match="missing"):
        record.log_model(exported.with_name("none"), prepared, torch_version="2")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def models() -> list[str]:
        of_run = f"source_run_id = '{record.run_id}'"
        return [
            model.status
            for model in record._client.search_logged_models([record.experiment_id], of_run)
        ]

    with monkeypatch.context() as trouble:
        trouble.setattr(mlflow_format, "write_model", full)
        record.log_model(exported, prepared, torch_version="2", metrics={"test/accuracy": 0.5})
    assert (models(), record.pending) == (["FAILED"], 1)
    record.finish("FINISHED")
    assert (models(), record.pending) == (["READY"], 0)
    assert record._client.get_logged_model(model_of(record)).metrics[0].value == 0.5

    # Sent again, as by a process that died before it moved the offset.
    [logged] = [line for line in record._delivery.log.read() if line.kind == "model"]
    file = record._delivery.attachment("model.pt2")
    shutil.copyfile(exported, file)
    record._delivery.send([Line("model", logged.values | {"file": str(file)})])
    assert models() == ["READY"]
    model_of(record)
