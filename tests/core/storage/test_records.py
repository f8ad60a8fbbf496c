"""Which runs' checkpoints and records may go, and what a deletion leaves that was killed."""

import fcntl
import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, ViewType
from mlflow.exceptions import MlflowException

from torchyard.core.errors import RunError
from torchyard.core.storage.records import PRUNED, Records
from torchyard.core.tracking.ownership.process import LOCK
from torchyard.core.tracking.queries.runs import PARENT, STUDY
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import open_store


@pytest.fixture
def client(new_store):
    return new_store


def begin(status="FINISHED", **tags):
    """A run with two checkpoints, an artifact and a logged model."""
    record = RunRecord.start(name_stem="run", parameters={}, tags=tags)
    for name in ("last.pt", "previous.pt"):
        (record.folder / name).write_bytes(b"x" * 100)
    record.log_text("hello", "note.txt")
    record.finish(status, "a reason")
    return record


def give_model(client, record):
    model = client.create_logged_model(
        record.experiment_id, source_run_id=record.run_id, name="classifier"
    )
    client.log_outputs(record.run_id, [LoggedModelOutput(model.model_id, 0)])
    place = Path(model.artifact_location.removeprefix("file://"))
    place.mkdir(parents=True)
    (place / "weights").write_bytes(b"x" * 1000)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, place


def kept(client, kind="checkpoints"):
    return {each.key: each.kept for each in getattr(Records(client), kind)()}


def only(client, record, kind):
    return next(e for e in getattr(Records(client), kind)() if e.key == record.run_id)


def test_checkpoints_of_a_finished_run_go_and_nothing_else_of_it(client):
    record = begin()
    found = only(client, record, "checkpoints")
    assert (found.kept, found.size) == ("", 200)
    assert Records(client).delete_checkpoints(found)
    assert not [*record.folder.glob("*.pt")]
    assert (record.folder / "log.jsonl").exists()
    assert client.get_run(record.run_id).info.lifecycle_stage == "active"
    assert kept(client) == {}


def test_what_can_be_resumed_or_runs_stays(client):
    failed, killed = begin("FAILED"), begin("KILLED")
    running = RunRecord.start(name_stem="run", parameters={}, tags={})
    (running.folder / "last.pt").write_bytes(b"x")
    expected = {failed.run_id: "it can be resumed", killed.run_id: "it can be resumed"}
    expected |= {running.run_id: "it runs"}
    assert kept(client) == kept(client, "runs") == expected
    records = Records(client)
    for each in [*records.checkpoints(), *records.runs()]:  # asked all the same
        done = records.delete_checkpoints if each.kind == "checkpoints" else records.discard
        assert not done(each)
    assert (failed.folder / "last.pt").exists()
    running.finish("FINISHED")


def test_what_another_process_holds_stays(client):
    """It trains a finished run on, and MLflow does not know yet."""
    record, records = begin(), Records(client)
    checkpoints, run = only(client, record, "checkpoints"), only(client, record, "runs")
    with (record.folder / LOCK).open("a") as lock:  # another descriptor, as another process has
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not records.delete_checkpoints(checkpoints)
        assert not records.discard(run)
    assert (record.folder / "last.pt").exists()
    assert client.get_run(record.run_id).info.lifecycle_stage == "active"
    assert records.delete_checkpoints(checkpoints)


def test_a_parent_stays_and_its_child_goes(client):
    parent = begin()
    child = begin(**{PARENT: parent.run_id})
    assert kept(client) == {parent.run_id: "it is the parent of another run", child.run_id: ""}
    found = only(client, parent, "checkpoints")
    assert not Records(client).delete_checkpoints(found)


def test_the_trials_of_an_unfinished_study_stay(client):
    study = begin("KILLED", **{STUDY: "s"})
    trial = begin(**{PARENT: study.run_id})
    assert kept(client)[trial.run_id] == "its study or its seeds have not finished"


def test_a_champion_stays_and_whatever_has_a_version_keeps_its_record(client):
    champion, before = begin(), begin()
    client.create_registered_model("digits")
    for record in (before, champion):
        client.create_model_version("digits", "somewhere", record.run_id)
    client.set_registered_model_alias("digits", "champion", "2")
    assert kept(client) == {champion.run_id: "it is digits@champion", before.run_id: ""}
    assert kept(client, "runs") == {
        champion.run_id: "it is digits@champion",
        before.run_id: "it has a version of a registered model",
    }


def test_what_mlflow_has_not_got_yet_stays(client):
    record = begin()
    (record.folder / "sent").write_text("0")
    assert kept(client) == {record.run_id: "MLflow does not have all of its record yet"}


def test_another_programs_runs_are_left_alone(client):
    foreign = client.create_run("0").info.run_id
    client.set_terminated(foreign)
    assert kept(client, "runs") == {}


def test_the_folder_of_a_run_in_the_trash_goes(client):
    record = begin("FAILED")
    client.delete_run(record.run_id)
    assert Records(client).delete_checkpoints(only(client, record, "checkpoints"))
    assert not record.folder.exists()


@pytest.mark.slow  # MLflow's own command takes ten seconds to start
def test_a_run_is_deleted_through_mlflow_with_its_artifacts_and_models(client, tmp_path):
    record, other = begin(), begin()
    model, place = give_model(client, record)
    mine = client.create_run(record.experiment_id).info.run_id
    client.delete_run(mine)  # by its user, who may want it back
    records = Records(client)
    found = only(client, record, "runs")
    assert found.size > 1000
    assert records.discard(found)
    assert client.get_run(record.run_id).info.lifecycle_stage == "deleted"
    assert not record.folder.exists()
    assert records.empty_trash() == ""
    artifacts = tmp_path / "mlruns" / "artifacts"
    assert not place.exists()
    assert not [*(artifacts / record.run_id).rglob("*.txt")]
    assert [*(artifacts / other.run_id).rglob("*.txt")]
    everything = client.search_runs([record.experiment_id], run_view_type=ViewType.ALL)
    assert {run.info.run_id for run in everything} == {other.run_id, mine}
    with pytest.raises(MlflowException, match=model):
        client.get_logged_model(model)


def test_a_users_deleted_experiment_is_not_emptied_with_it(client):
    record = begin()
    give_model(client, record)
    deleted = client.create_experiment("dear")
    client.delete_experiment(deleted)
    records = Records(client)
    assert records.discard(only(client, record, "runs"))
    assert records.empty_trash().startswith("mlflow gc --backend-store-uri sqlite:")
    assert client.get_experiment(deleted).lifecycle_stage == "deleted"
    assert client.get_run(record.run_id).info.lifecycle_stage == "deleted"


def test_what_mlflows_command_says_of_a_failure_is_told(client, tmp_path, monkeypatch, capfd):
    record = begin()
    give_model(client, record)
    records, found = Records(client), only(client, record, "runs")
    assert found.size == 1000 + len("hello")
    assert records.discard(found)
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    failing.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(RunError, match="`mlflow gc` failed") as raised:
        records.empty_trash()
    assert raised.value.details == "no room\n"
    assert "no room" not in capfd.readouterr().err


def discard_and_die(run_id, owner, name):
    """Delete a run in a process that dies as it calls a function for the first time."""
    target = importlib.import_module(owner) if owner else MlflowClient
    setattr(target, name, lambda *_, **__: os._exit(9))
    records = Records(open_store(os.environ["MLFLOW_TRACKING_URI"]))
    records.discard(next(each for each in records.runs() if each.key == run_id))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("", "delete_logged_model"),
        ("torchyard.core.storage.records", "delete"),
        ("torchyard.core.storage.deletion", "_remove"),
    ],
)
def test_a_deletion_that_is_killed_is_finished_by_the_next_one(client, owner, name):
    record = begin()
    model, _ = give_model(client, record)
    client.delete_experiment(client.create_experiment("dear"))  # so the trash is left to MLflow
    process = multiprocessing.get_context("fork").Process(
        target=discard_and_die, args=(record.run_id, owner, name)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    left = client.get_run(record.run_id)
    assert left.info.lifecycle_stage == "deleted"
    assert PRUNED in left.data.tags
    assert kept(client, "runs") == {}  # nobody finds a part of it
    assert Records(client).empty_trash()
    assert not [*record.folder.parent.iterdir()]
    with pytest.raises(MlflowException, match=model):
        client.get_logged_model(model)
