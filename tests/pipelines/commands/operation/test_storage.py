"""`torchyard du` and `prune` as their user meets them."""

import json
import os

import pytest

from tests.core.storage.test_cache import Toy
from tests.pipelines.command_line import refused, torchyard
from torchyard.core.data.files import CACHE
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.core.tracking.record import RunRecord
from torchyard.pipelines.commands.operation import storage


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a finished run and one that failed, prepared data and a download."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TORCHYARD_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for status in ("FINISHED", "FAILED"):
        record = RunRecord.start(name_stem="run", parameters={}, tags={})
        (record.folder / "last.pt").write_bytes(b"x" * 5000)
        record.finish(status, "")
    prepare_dataset("toy", Toy(), tmp_path / "cache", lambda *_: None)
    download = tmp_path / "cache" / "downloads" / "toy.tar.gz"
    download.write_bytes(b"x" * 70_000)
    download.with_name("toy.tar.gz.lock").touch()  # as whoever downloads has
    os.utime(download, (1, 1))
    return tmp_path


def left(folder):
    return sorted(each.name for each in folder.rglob("*") if each.suffix in (".pt", ".gz"))


def printed(capsys):
    return capsys.readouterr().out


def test_it_shows_first_and_deletes_when_told(folder, capsys):
    storage.prune(None, "0s", None, None, yes=False, as_json=False)
    shown = printed(capsys)
    assert "downloads    toy.tar.gz" in shown
    assert "checkpoints  run #1" in shown
    assert "run #2" not in shown
    assert "checkpoints: 1 kept, because it can be resumed" in shown
    assert "prepared: 1 kept, because a process uses it" in shown
    assert "75 KB would be deleted. Nothing was: --yes does it." in shown
    assert left(folder) == ["last.pt", "last.pt", "toy.tar.gz"]
    storage.prune(None, "0s", None, None, yes=True, as_json=False)
    assert "Deleted: 75 KB." in printed(capsys)
    assert left(folder) == ["last.pt"]
    storage.prune(None, "0s", None, None, yes=True, as_json=False)
    assert "Nothing to delete." in printed(capsys)


def test_without_a_condition_it_takes_what_was_not_used_for_thirty_days(folder, capsys):
    storage.prune(None, None, None, None, yes=False, as_json=True)
    [row] = json.loads(printed(capsys))
    assert (row["name"], row["bytes"], row["deleted"]) == ("toy.tar.gz", 70_000, False)


def test_kinds_number_and_size_are_conditions(folder, capsys):
    storage.prune(["checkpoints"], None, 2, None, yes=False, as_json=True)
    assert json.loads(printed(capsys)) == []
    storage.prune(["checkpoints"], None, None, "5KB", yes=False, as_json=True)
    assert len(json.loads(printed(capsys))) == 1
    storage.prune(["downloads"], None, None, "70KB", yes=True, as_json=True)
    assert json.loads(printed(capsys)) == []


def test_a_run_is_deleted_by_its_kind_alone(folder, capsys):
    storage.prune(["runs"], "0s", None, None, yes=False, as_json=True)
    assert [row["name"] for row in json.loads(printed(capsys))] == ["run #1"]


def test_du_adds_up(folder, capsys):
    storage.du(as_json=True)
    rows = {row["what"]: row for row in json.loads(printed(capsys))}
    assert rows["checkpoints of runs"] | {"where": ""} == {
        **{"what": "checkpoints of runs", "number": 2, "bytes": 10_000, "can_go": 5000},
        "where": "",
    }
    assert rows["downloads"]["bytes"] == rows["downloads"]["can_go"] == 70_000
    assert rows["prepared data"]["can_go"] == 0 < rows["prepared data"]["bytes"]
    assert rows["logs of runs"]["bytes"] > 0 < rows["database of MLflow"]["bytes"]
    storage.du(as_json=False)
    assert "70 KB" in printed(capsys)


def test_every_mistake_is_said_at_once(tmp_path):
    assert refused(
        tmp_path, "prune", "checkpoint", "--older-than", "3 weeks", "--down-to", "all"
    ) == [
        "there is no kind 'checkpoint' to prune. Did you mean 'checkpoints'?  "
        "(accepts: checkpoints, prepared, downloads, runs)",
        "--older-than: '3 weeks' is no age such as 30d, 12h or 1d12h",
        "--down-to: 'all' is no size such as 500MB, 20GB or 1.5TB",
    ]


def test_where_there_is_nothing_it_says_so(tmp_path):
    done = torchyard(tmp_path, "prune")
    assert (done.returncode, done.stdout) == (0, "Nothing to delete.\n")
    assert torchyard(tmp_path, "du").returncode == 0
    assert [*tmp_path.iterdir()] == []
