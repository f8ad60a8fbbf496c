"""A store that does not answer: what is recorded meanwhile waits on disk, and is sent once."""

import math
import shutil
import time
from pathlib import Path

import pytest

from tests.core.tracking.runs import DEAD, Server, model_of, start, stored
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.delivery import ATTACHMENTS, LogDelivery
from torchyard.core.tracking.ownership.orphans import sync_run
from torchyard.core.tracking.record import RunRecord


def log_everything(record: RunRecord, prepared: PreparedDataset, exported: Path) -> None:
    from matplotlib.figure import Figure

    record.log_parameters({"optimizer": {"lr": 0.1}})
    record.set_tags({"device": "cpu"})
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0, "bad": math.nan}, 1)
    record.log_text("# 报告", "report.md")
    record.log_figure(Figure(), "pictures/confusion.png")
    record.log_model(exported, prepared, torch_version="2.15.0", metrics={"test/accuracy": 0.5})
    record.log_metrics({"train/loss": 0.5}, 2)


def all_there(record: RunRecord) -> None:
    run, client = stored(record), record._client
    assert run.info.status == "FINISHED"
    assert run.info.end_time < time.time() * 1000
    assert run.data.params == {"optimizer.lr": "0.1"}
    assert run.data.tags["device"] == "cpu"
    assert run.data.metrics["test/accuracy"] == 0.5
    losses = client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 0.5)]
    assert len(run.inputs.dataset_inputs) == 2
    assert sorted(file.path for file in client.list_artifacts(record.run_id)) == [
        "pictures",
        "report.md",
    ]
    assert Path(client.download_artifacts(record.run_id, "report.md")).read_text() == "# 报告"
    logged = client.get_logged_model(model_of(record))
    assert (logged.status, logged.metrics[0].value) == ("READY", 0.5)


def test_what_a_server_misses_waits_on_disk_until_it_is_back(
    server: Server, prepared: PreparedDataset, exported: Path, monkeypatch, caplog
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
        assert record.pending == 9
        assert [*caplog.messages] == [
            f"The MLflow store {server.url} does not answer. Metrics and files wait on disk."
        ]
    assert stored(record).info.status == "RUNNING"
    # Of a living process nothing is touched; once it is dead, the next run's start sends it.
    start().finish("FINISHED")
    assert stored(record).info.status == "RUNNING"
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    start().finish("FINISHED")
    all_there(record)
    assert record.pending == 0


def test_a_server_that_comes_back_in_mid_run_is_sent_all_in_order(
    server: Server, prepared: PreparedDataset, exported: Path, monkeypatch
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.set_tags({"device": "cuda"})
    record.set_tags({"device": "mps"})
    assert record.pending  # it is not asked for every entry
    assert record.sync()
    record.set_tags({"device": "cpu"})
    assert record.pending == 0
    record.finish("FINISHED")
    all_there(record)


def test_an_entry_that_was_sent_twice_is_recorded_once(
    server: Server, prepared: PreparedDataset, exported: Path, tmp_path: Path
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
    shutil.copytree(record.folder, tmp_path / "before")
    for _ in range(2):  # the second time as by a process that died before it moved the offset
        again = LogDelivery(record._client, stored(record))
        assert len(again) == 9
        again.deliver()
        assert len(again) == 0
        assert list((record.folder / ATTACHMENTS).iterdir()) == []
        shutil.rmtree(record.folder)
        shutil.copytree(tmp_path / "before", record.folder)
    all_there(record)


def test_what_waits_can_be_sent_once_the_prepared_data_are_deleted(
    server: Server, prepared: PreparedDataset, exported: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(prepared.folder, cache)
    record = start()
    with server.away():
        log_everything(record, PreparedDataset.open(cache), exported)
        assert record.finish("FINISHED") is False
    shutil.rmtree(cache)
    assert sync_run(record._client, stored(record)).info.status == "RUNNING"  # its process lives
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    assert sync_run(record._client, stored(record)).info.status == "FINISHED"
    all_there(record)
    assert not (record.folder / "refused.jsonl").exists()


def test_a_run_that_finished_without_its_server_is_finished_when_resumed(
    server: Server, prepared: PreparedDataset, exported: Path
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
    with pytest.raises(UserError, match="is finished: there is nothing left to do"):
        RunRecord.resume(record.run_id)
    all_there(record)


def test_what_waits_is_found_from_another_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start()
    with server.away():
        record.set_tags({"sent": "late"})
        record.finish("FINISHED")
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    start().finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.tags["sent"]) == ("FINISHED", "late")


def test_a_locked_database_is_one_message(
    record: RunRecord,
    database: str,
    monkeypatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import sqlite3

    from sqlalchemy import event

    def hurry(connection, cursor, statement, *_: object) -> None:
        if "busy_timeout" in statement:  # MLflow waits 20 seconds
            cursor.execute("PRAGMA busy_timeout = 50")

    engine = record._client._tracking_client.store.engine
    event.listen(engine, "after_cursor_execute", hurry)
    other = sqlite3.connect(database.removeprefix("sqlite:///"))
    other.execute("BEGIN EXCLUSIVE")
    try:
        record.set_tags({"a": "b"})
        record.set_tags({"a": "c"})
        with pytest.raises(RunError) as failure:
            RunRecord.open(record.run_id)
    finally:
        other.rollback()
        other.close()
        event.remove(engine, "after_cursor_execute", hurry)
    assert str(failure.value).endswith("is locked by another program.")
    assert failure.value.details == ""
    assert capfd.readouterr() == ("", "")
    [warning] = caplog.messages  # once, not for every entry
    assert warning.endswith("is locked by another program. Metrics and files wait on disk.")
    assert record.pending == 2
    record.finish("FINISHED")
    assert (stored(record).data.tags["a"], record.pending) == ("c", 0)


def test_a_log_that_cannot_be_written_is_no_matter_while_the_store_answers(
    server: Server,
) -> None:
    record = start()
    shutil.rmtree(record.folder)
    record.folder.write_text("in the way")
    record = RunRecord.open(record.run_id)
    record.set_tags({"sent": "directly"})
    record.log_metrics({"train/loss": 0.5}, 1)
    with pytest.raises(RunError, match=r"report.md cannot be kept in .*: Not a directory"):
        record.log_text("# report", "report.md")
    with (
        server.away(),
        pytest.raises(RunError, match=r"MLflow does not answer, and the run's log .*log.jsonl can"),
    ):
        record.set_tags({"sent": "never"})
    record.finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.tags["sent"]) == ("FINISHED", "directly")
    assert run.data.metrics == {"train/loss": 0.5}
