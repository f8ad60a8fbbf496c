"""The record of a run, against real MLflow stores: SQLite files and a server over HTTP."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.core.tracking.runs import Server, model_of, start, stored
from torchyard.core import redaction
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError
from torchyard.core.tracking import mlflow_format, store
from torchyard.core.tracking.ownership import lease
from torchyard.core.tracking.ownership.process import PROCESS, ProcessIdentity
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import EpochDone, GradientNorms, RunningLoss
from torchyard.core.training.run_log import with_metrics_logged

pytestmark = pytest.mark.usefixtures("environment")
ROOT = Path(__file__).parents[3]


def test_a_run_has_a_speaking_name_a_source_and_a_page(record: RunRecord) -> None:
    run = stored(record)
    assert re.fullmatch(r"lenet·sgd·toy #\d+", record.name)
    assert run.info.run_name == record.name
    assert run.info.status == "RUNNING"
    assert run.data.tags["model"] == "lenet"
    assert run.data.tags["mlflow.source.name"] == sys.argv[0]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.user"]
    page = (
        f"/#/experiments/{record.experiment_id}/runs/{record.run_id}?workflowType=machine_learning"
    )
    assert record.url == f"http://127.0.0.1:5000{page}"


def test_numbers_count_up_and_artifacts_lie_beside_the_database(
    record: RunRecord, database: str
) -> None:
    second = start()
    second.log_text("one", "notes/one.txt")
    second.finish("FINISHED")
    assert int(second.name.rpartition("#")[2]) == int(record.name.rpartition("#")[2]) + 1
    folder = Path(database.removeprefix("sqlite:///")).parent / "artifacts"
    assert (folder / second.run_id / "artifacts/notes/one.txt").read_text() == "one"


def test_parameters_are_flat_and_readable(record: RunRecord) -> None:
    record.log_parameters(
        {
            "optimizer": {"name": "sgd", "lr": 1e-3, "betas": [0.9, 0.99], "clip": None},
            "train": {"amp": True, "empty": {}},
            "long": "x" * 7000,
            **{f"many.{index}": index for index in range(150)},
        }
    )
    parameters = stored(record).data.params
    assert parameters["optimizer.name"] == "sgd"
    assert parameters["optimizer.lr"] == "0.001"
    assert parameters["optimizer.betas"] == "[0.9, 0.99]"
    assert parameters["optimizer.clip"] == "null"
    assert parameters["train.amp"] == "true"
    assert parameters["train.empty"] == "{}"
    assert parameters["many.149"] == "149"
    assert len(parameters["long"]) == 6000
    assert parameters["long"].endswith("x… (7000 characters in all)")


def test_a_parameter_cannot_change(record: RunRecord) -> None:
    record.log_parameters({"seed": 0})
    record.log_parameters({"seed": 0})
    with pytest.raises(RunError, match="refused: Changing param values"):
        record.log_parameters({"seed": 1})


def test_metrics_wait_in_the_buffer_and_go_out_in_batches(record: RunRecord) -> None:
    sent = []
    log_batch = record._client.log_batch
    record._client.log_batch = lambda *a, **k: (sent.append(len(k["metrics"])), log_batch(*a, **k))
    try:
        for step in range(1200):
            record.log_metrics({"train/loss": step / 10, "train/accuracy": 0.5}, step)
        assert sent == []
        record.flush()
    finally:
        del record._client.log_batch
    assert sent == [1000, 1000, 400]
    history = record._client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(n, n / 10) for n in range(1200)]


def test_metrics_of_some_seconds_are_sent_though_the_training_does_not_wait(
    workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    record = start()
    record.log_metrics({"train/loss": 0.5}, 1)
    deadline = time.monotonic() + 60
    while not stored(record).data.metrics and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stored(record).data.metrics == {"train/loss": 0.5}
    record.finish("FINISHED")


def test_the_workers_metrics_are_sent_with_the_rest_and_a_step_once(record: RunRecord) -> None:
    emit = with_metrics_logged(record.folder, lambda event: None)  # as the worker process does
    for step in (10, 20):
        emit(RunningLoss(step, step / 100))
        emit(GradientNorms(step, {"model.fc": 0.5}))
    emit(RunningLoss(10, 9.0))  # resumed from a checkpoint before step 10
    emit(EpochDone(1, 20, 0.3, 0.9, 0.4, 0.8, 0.1, 1000.0, 2.0))
    record.log_metrics({"train/running_loss": 8.0}, 20)
    assert stored(record).data.metrics == {}
    assert record.metrics["train/loss"] == 0.3
    record.flush()
    record.flush()
    history = record._client.get_metric_history(record.run_id, "train/running_loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 0.2)]
    metrics = stored(record).data.metrics
    assert metrics["gradient_norm/fc"] == 0.5
    assert (metrics["val/loss"], metrics["val/accuracy"]) == (0.4, 0.8)


def test_what_is_trained_again_with_another_result_is_known(record: RunRecord) -> None:
    """As on a GPU, or where all checkpoints were damaged and the first machine is another."""
    for step, loss in ((10, 0.5), (20, math.nan), (30, 0.1)):
        record.log_metrics({"train/running_loss": loss, "train/images_per_second": loss}, step)
    record.finish("FAILED", "killed")
    again = RunRecord.resume(record.run_id)
    for step, loss in ((10, 0.5), (20, math.nan)):  # the same
        again.log_metrics({"train/running_loss": loss, "train/images_per_second": 7.0}, step)
    again.flush()
    assert again.differing == ""
    again.log_metrics({"train/running_loss": 0.2}, 30)
    again.log_metrics({"train/running_loss": 0.1}, 40)
    again.flush()
    assert again.differing == "train/running_loss to 30"
    history = again._client.get_metric_history(record.run_id, "train/running_loss")
    assert [point.step for point in history] == [10, 20, 30, 40]
    again.finish("FINISHED")


def test_a_file_is_linked_and_stays_where_it_was(record: RunRecord) -> None:
    file = record.folder / "predictions.parquet"
    file.write_text("rows")
    record.log_file(file)
    [found] = record._client.list_artifacts(record.run_id)
    assert (found.path, found.file_size) == ("predictions.parquet", 4)
    assert file.read_text() == "rows"
    assert file.stat().st_nlink == 1  # the attachment is removed once it is sent


def test_odd_keys_and_values_are_taken(record: RunRecord) -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)}
    odd = {'tr"ain/l(o)ss': 1.0, "/../x//y/": 2.0, "k" * 400: 3.0, "..": 4.0}
    record.log_metrics(values | odd, 0)
    record.flush()
    metrics = stored(record).data.metrics
    assert all(math.isnan(metrics[key]) for key in "abc")
    assert metrics["d"] == 0.5
    assert metrics["tr_ain/l_o_ss"] == 1.0
    assert metrics["x/y"] == 2.0
    assert metrics["k" * 250] == 3.0
    assert metrics["_"] == 4.0


def test_a_long_description_ends_with_whole_lines(record: RunRecord) -> None:
    record.describe("| row |\n" * 3000)
    note = stored(record).data.tags["mlflow.note.content"]
    assert 7900 < len(note) <= 8000
    assert note.endswith("| row |\n\n… (24000 characters in all)")


def test_figures_are_kept(record: RunRecord) -> None:
    from matplotlib.figure import Figure

    record.log_figure(Figure(), "figures/confusion.png")
    client = record._client
    assert [file.path for file in client.list_artifacts(record.run_id, "figures")] == [
        "figures/confusion.png"
    ]


def test_both_splits_are_inputs_of_the_run(record: RunRecord, prepared: PreparedDataset) -> None:
    record.log_dataset(prepared)
    inputs = stored(record).inputs.dataset_inputs
    found = {given.dataset.name: given for given in inputs}
    assert sorted(found) == ["toy test", "toy train"]
    assert {tag.key: tag.value for tag in found["toy test"].tags} == {"mlflow.data.context": "test"}
    dataset = found["toy train"].dataset
    assert dataset.digest == prepared.digest[:16]
    assert dataset.source_type == "http"
    assert json.loads(dataset.source) == {"url": "https://example.org/toy.zip"}
    profile = json.loads(dataset.profile)
    assert profile["rows"] == 20
    assert profile["rows per class"] == [["cat", 7], ["狗", 7], ['a"/b', 6], ["A__b", 0]]
    assert profile["sha256"] == prepared.digest
    assert "mlflow_tensorspec" in json.loads(dataset.schema)


def test_another_process_continues_a_run_by_its_id(record: RunRecord) -> None:
    again = RunRecord.open(record.run_id)
    assert (again.name, again.experiment_id, again.url) == (
        record.name,
        record.experiment_id,
        record.url,
    )
    with pytest.raises(RunError, match="not found"):
        RunRecord.open("0" * 32)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_sends_the_buffer_and_says_why(workspace: str, status) -> None:
    record = start()
    record.log_metrics({"test/accuracy": 0.9}, 3)
    record.finish(status, "because")
    run = stored(record)
    assert run.info.status == status
    assert run.info.end_time
    assert run.data.tags["torchyard.reason"] == "because"
    assert run.data.metrics == {"test/accuracy": 0.9}


def test_a_run_that_cannot_be_begun_is_not_left_running(workspace: str, monkeypatch) -> None:
    monkeypatch.setattr(mlflow_format, "flattened", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start()
    client = store.open_store(workspace)
    experiment = client.get_experiment_by_name("torchyard")
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FAILED"


def test_the_next_run_ends_those_whose_process_is_gone_and_no_others(workspace: str) -> None:
    own = ProcessIdentity.of(os.getpid())
    owners = {
        "gone": dataclasses.replace(own, number=999999999),
        "number taken again": dataclasses.replace(own, started="1"),
        "alive": ProcessIdentity.of(1),
        "on another machine": dataclasses.replace(own, boot="another", machine=""),
        "not understood": "x",
        "without a tag": "",
    }
    runs = {}
    for kind, owner in owners.items():
        runs[kind] = start()
        client = runs[kind]._client
        client.set_tag(runs[kind].run_id, PROCESS, str(owner))
    client.delete_tag(runs["without a tag"].run_id, PROCESS)
    client.set_experiment_tag(runs["gone"].experiment_id, "torchyard.runs", "x")
    start().finish("FINISHED")
    ended = {kind for kind, run in runs.items() if stored(run).info.status == "KILLED"}
    assert ended == {"gone", "number taken again"}
    reason = stored(runs["gone"]).data.tags["torchyard.reason"]
    assert reason == "its process ended without reporting why"
    for run in runs.values():
        client.set_terminated(run.run_id, "KILLED")


def test_nothing_that_is_recorded_has_a_secret(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redaction, "_kept", {"hunter2hunter2"})
    text = "with hunter2hunter2 at https://me:pass/w@rd@host/x"
    record.set_tags({"tag": text})
    record.log_parameters({"plain": text, "nested": {"list": [text]}})
    record.describe(text)
    record.log_text(text, "notes/text.txt")
    record.log_config(f"model: {text}")
    record.finish("FAILED", f"it failed {text}")
    kept = [file.read_bytes() for file in record.folder.rglob("*") if file.is_file()]
    artifacts = Path(record._client.download_artifacts(record.run_id, ""))
    kept += [file.read_bytes() for file in artifacts.rglob("*") if file.is_file()]
    run = stored(record)
    shown = b"".join(kept).decode() + str(run.data.tags) + str(run.data.params)
    assert "pass/w" not in shown
    assert run.data.tags["tag"] == "with *** at https://host/x"
    assert run.data.tags["torchyard.reason"] == "it failed with *** at https://host/x"
    assert run.data.params["nested.list"] == '["with *** at https://host/x"]'
    assert (artifacts / "notes/text.txt").read_text() == "with *** at https://host/x"


WHOLE_RECORD = """
    import sys
    from pathlib import Path
    from torchyard.core.tracking.record import RunRecord
    from torchyard.core.tracking.store import check_writable, tracking_uri
    from torchyard.core.data.dataset import PreparedDataset
    check_writable(tracking_uri())
    assert "mlflow" not in sys.modules
    prepared = PreparedDataset.open(Path(sys.argv[1]))
    record = RunRecord.start(name_stem="run", parameters={"a": 1}, tags={"b": "c"})
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0}, 0)
    record.log_text("# report", "report.md")
    record.log_model(Path(sys.argv[2]), prepared, torch_version=sys.argv[3])
    record.finish("FINISHED")
    print(record.name, "torch" in sys.modules)
"""


def whole_record(prepared: PreparedDataset, exported: Path, **environment: str) -> subprocess.Popen:
    import torch

    code = textwrap.dedent(WHOLE_RECORD)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(prepared.folder), str(exported), torch.__version__],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


@pytest.mark.slow
def test_two_first_runs_at_once_succeed_quietly_and_without_torch(
    prepared: PreparedDataset, exported: Path
) -> None:
    runs = [whole_record(prepared, exported) for _ in range(2)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert sorted(out for out, _ in outputs) == ["run #1 False\n", "run #2 False\n"]
    assert [err for _, err in outputs] == ["", ""]


def test_a_server_takes_the_whole_record(
    server: Server, prepared: PreparedDataset, exported: Path, capfd
) -> None:
    record = start(optimizer={"lr": 0.1})
    assert record.url.startswith(f"{server.url}/#/experiments/")
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0, "bad": math.nan}, 0)
    record.log_text("# report", "report.md")
    record.log_model(exported, prepared, torch_version="2.15.0", metrics={"test/accuracy": 0.5})
    record.finish("FINISHED")
    assert capfd.readouterr() == ("", "")

    run = stored(record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == 0.5
    assert math.isnan(run.data.metrics["bad"])
    assert len(run.inputs.dataset_inputs) == 2
    logged = record._client.get_logged_model(model_of(record))
    assert logged.status == "READY"
    files = record._client.list_logged_model_artifacts(logged.model_id, "data")
    assert [file.path for file in files] == ["data/model.pt2"]


def test_a_server_that_is_not_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(store, "START_SECONDS", 0.1)
    with pytest.raises(
        RunError, match=r"^The MLflow store http://127.0.0.1:9 does not answer\.$"
    ) as raised:
        start()
    assert raised.value.details == ""
    assert capfd.readouterr() == ("", "")


def test_a_run_that_had_no_data_can_be_discarded(
    workspace: str, prepared: PreparedDataset, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(workspace)
    for with_data in (False, True):
        record = start()
        if with_data:
            record.log_dataset(prepared)
        record.finish("FAILED", "dataset x: there are no images")
        assert record.discard() == (not with_data)
        assert record.folder.exists() == with_data
        found = client.get_run(record.run_id)
        assert found.info.status == "FAILED"
        assert found.info.lifecycle_stage == ("active" if with_data else "deleted")
