"""A store that was copied, moved or renamed, artifacts and all."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from tests.core.tracking.runs import model_of, start, stored
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.relocation import relocate
from torchyard.core.tracking.queries.lookup import find_run
from torchyard.core.tracking.queries.recorded import recorded_config, recorded_predictions
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.registry.classifier import ImageClassifier
from torchyard.core.tracking.store import open_existing

ADDRESS = "runs.artifact_uri"
NAMES = st.text("aé猫 %?#'\"20;&=+", min_size=1, max_size=8)


@pytest.fixture
def original(recorded) -> Path:
    """The folder of a project with runs."""
    database = database_of(recorded.client.tracking_uri)
    assert database is not None
    return database.parents[1]


@pytest.fixture
def copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, with the store that commands find in it."""
    folder = tmp_path / "copied 100% 猫"
    shutil.copytree(original, folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
    return folder


def addresses(database: Path, *columns: str) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [
            value
            for table, column in (each.split(".") for each in columns)
            for (value,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY 1")
        ]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(folder: Path) -> MlflowClient:
    return open_existing(f"sqlite:///{folder}/mlruns/mlflow.db")


def test_a_copy_has_its_own_artifacts_and_leaves_the_original_alone(
    recorded, original: Path, copy: Path
) -> None:
    before = contents(original)
    client = opened(copy)
    run = client.get_run(recorded.ids["good"])
    assert Path(client.download_artifacts(run.info.run_id, "")).is_relative_to(copy)
    assert recorded_predictions(client, run).classes
    begun = start()
    begun.log_text("hello", "hello.txt")
    begun.finish("FINISHED")
    [logged] = (copy / "mlruns/artifacts").rglob("hello.txt")
    assert logged.read_text() == "hello"
    RunRecord.resume(recorded.ids["failed"]).finish("FINISHED")
    assert contents(original) == before


def test_a_renamed_project_is_opened_and_its_old_folder_is_not_made_again(
    recorded, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(copy)
    begun = start(dataset={"name": "folder", "path": str(copy / "photos"), "also": [str(copy)]})
    begun.log_config(f"dataset: {{path: '{copy}/photos', others: ['{copy}/photos', /elsewhere]}}")
    begun.finish("KILLED")
    (copy / "photos").mkdir()
    utils._artifact_repos_cache.clear()  # as in another process
    renamed = tmp_path / "renamed"
    copy.rename(renamed)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{renamed}/mlruns/mlflow.db")
    client = opened(renamed)
    run = find_run(client, begun.run_id)
    photos = str(renamed / "photos")
    assert recorded_config(client, run) == {
        "dataset": {"path": photos, "others": [photos, "/elsewhere"]}
    }
    assert run.data.params["dataset.path"] == photos
    resumed = RunRecord.resume(begun.run_id)
    resumed.log_parameters({"dataset": {"path": photos}})
    resumed.log_text("hello", "hello.txt")
    resumed.finish("FINISHED")
    assert stored(resumed).info.status == "FINISHED"
    assert list(renamed.rglob("hello.txt"))
    assert not copy.exists()


def test_the_model_of_a_run_moves_and_predicts_where_the_original_is_gone(
    copy: Path, prepared, exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    opened(copy)
    begun = start()
    begun.log_model(exported, prepared, torch_version=torch.__version__)
    begun.finish("FINISHED")
    moved = tmp_path / "moved"
    shutil.copytree(copy, moved)
    shutil.rmtree(copy)
    monkeypatch.chdir(moved)
    utils._artifact_repos_cache.clear()  # as in another process
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlruns/mlflow.db")
    found = ImageClassifier.find(begun.run_id)
    model = opened(moved).get_logged_model(model_of(begun))
    assert model.artifact_location.startswith(moved.as_uri())
    assert found.probabilities(prepared.test.samples).shape == (9, 4)
    assert not copy.exists()


def test_a_store_with_two_names_keeps_its_addresses(original: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(original)
    database = original / "mlruns/mlflow.db"
    before = addresses(database, ADDRESS)
    relocate(link / "mlruns/mlflow.db")
    assert addresses(database, ADDRESS) == before


def test_addresses_elsewhere_are_not_touched(recorded, copy: Path) -> None:
    database = copy / "mlruns/mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE model_versions SET source = 's3://bucket/model'")
        connection.execute(
            "INSERT INTO tags SELECT 'torchyard.folder', '/of/a/servers/client', run_uuid "
            "FROM runs WHERE run_uuid = ?",
            (recorded.ids["foreign"],),
        )
        connection.execute(  # with TORCHYARD_RUNS, in a folder that the project lies in
            "UPDATE tags SET value = ? WHERE key = 'torchyard.folder' AND run_uuid = ?",
            (str(copy.parent / "runs"), recorded.ids["failed"]),
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = 's3://bucket' WHERE run_uuid = ?",
            (recorded.ids["foreign"],),
        )
    relocate(database)
    own = (copy / "mlruns").as_uri()
    assert set(addresses(database, "model_versions.source")) == {"s3://bucket/model"}
    places = addresses(database, ADDRESS)
    assert places.count("s3://bucket") == 1
    assert sum(place.startswith(own) for place in places) == len(places) - 1


def test_an_experiment_without_runs_moves_too(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(copy)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    begun = start()
    begun.finish("KILLED")
    database = copy / "mlruns/mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM tags")
    moved = copy.with_name("moved")
    shutil.copytree(copy, moved)
    relocate(moved / "mlruns/mlflow.db")
    places = addresses(moved / "mlruns/mlflow.db", "experiments.artifact_location")
    assert not [place for place in places if place.startswith(copy.as_uri())]


def test_a_model_goes_where_the_run_sees_the_store(copy: Path, prepared, exported) -> None:
    opened(copy)
    begun = start()
    elsewhere = copy.with_name("another mount of the folder")
    copy.rename(elsewhere)
    relocate(elsewhere / "mlruns/mlflow.db")
    elsewhere.rename(copy)
    begun.log_model(exported, prepared, torch_version="2.15")
    begun.finish("FINISHED")
    assert list((copy / "mlruns/artifacts").rglob("model.pt2"))
    assert not elsewhere.exists()


def test_other_processes_see_all_addresses_as_before_or_all_as_now(
    original: Path, tmp_path: Path
) -> None:
    database = tmp_path / "copy/mlflow.db"
    shutil.copytree(original / "mlruns", database.parent)
    threads = [threading.Thread(target=relocate, args=[database]) for _ in range(4)]
    seen: set[tuple[bool, ...]] = set()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        columns = (ADDRESS, "experiments.artifact_location")
        own = [str(tmp_path) in address for address in addresses(database, *columns)]
        seen.add(tuple(sorted(set(own))))
    assert seen <= {(False,), (False, True), (True,)}
    assert str(original) not in "".join(addresses(database, ADDRESS))


@given(name=NAMES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_goes_to_a_folder_of_any_name_and_comes_back(
    original: Path, tmp_path: Path, name: str
) -> None:
    columns = (ADDRESS, "experiments.artifact_location")
    folder, there = tmp_path / "here", tmp_path / name / "mlruns"
    shutil.copytree(original / "mlruns", folder, ignore=shutil.ignore_patterns("artifacts", "runs"))
    relocate(folder / "mlflow.db")
    before = addresses(folder / "mlflow.db", *columns)
    there.parent.mkdir()
    folder.rename(there)
    relocate(there / "mlflow.db")
    assert f"{there.as_uri()}/artifacts" in addresses(there / "mlflow.db", *columns)
    there.rename(folder)
    relocate(folder / "mlflow.db")
    assert addresses(folder / "mlflow.db", *columns) == before
    shutil.rmtree(folder)
    there.parent.rmdir()


@pytest.mark.parametrize("content", [b"", b"no database " * 1000])
def test_what_is_no_store_of_mlflow_is_left_to_mlflow(tmp_path: Path, content: bytes) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(content)
    if content:
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            relocate(database)
    else:
        relocate(database)
    assert database.read_bytes() == content
