"""The blank databases: copied where there is none, and never over one; what MLflow makes of its."""

import contextlib
import sqlite3
import sys

import pytest

from torchyard.core.tracking.store import copy_template_database, open_store, template_database
from torchyard.pipelines.services.blank_database import make_blank


def schema(database):
    """Tables, indices and triggers; MLflow's migrations order a table's constraints by chance."""
    return sorted(
        (kind, name, sorted(line.strip(" \t,") for line in (sql or "").splitlines()))
        for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master")
    )


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    template_database("prefect").parent.mkdir(parents=True)
    template_database("prefect").write_bytes(b"blank")
    (tmp_path / "home").mkdir()
    return f"sqlite+aiosqlite:///{tmp_path}/home/prefect.db"


def test_a_new_database_begins_as_a_copy_and_is_kept_from_then_on(tmp_path, url):
    database = tmp_path / "home" / "prefect.db"
    copy_template_database("prefect", url)
    assert database.read_bytes() == b"blank"
    database.write_bytes(b"runs")
    copy_template_database("prefect", url)
    assert database.read_bytes() == b"runs"
    assert list(database.parent.iterdir()) == [database]
    assert template_database("prefect").read_bytes() == b"blank"


def test_without_a_blank_one_prefect_makes_its_own(tmp_path, url):
    template_database("prefect").unlink()
    copy_template_database("prefect", url)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "other", ["postgresql+asyncpg://me@host/prefect", "sqlite+aiosqlite:///file::memory:?uri=true"]
)
def test_what_is_no_file_is_left_to_the_program(tmp_path, url, monkeypatch, other):
    monkeypatch.chdir(tmp_path / "home")
    copy_template_database("prefect", other)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_copy_is_what_mlflow_itself_would_have_made(tmp_path, url, monkeypatch):
    monkeypatch.chdir(tmp_path / "home")
    make_blank("mlflow")
    with contextlib.closing(sqlite3.connect(template_database("mlflow"))) as database:
        database.execute("PRAGMA user_version = 7")  # to be known again
    described = []
    for name, mark in (("copy", 7), ("made", 0)):
        store = f"sqlite:///{tmp_path}/home/{name}.db"
        client = open_store(store)
        [default] = client.search_experiments()
        assert (default.experiment_id, default.name) == ("0", "Default")
        assert str(tmp_path / "environment") not in default.artifact_location
        run = client.create_run("0")
        client.log_metric(run.info.run_id, "loss", 1.0)
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}
        with contextlib.closing(sqlite3.connect(tmp_path / "home" / f"{name}.db")) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (mark,)
            described.append(schema(database))
            described.append(database.execute("SELECT * FROM alembic_version").fetchall())
        template_database("mlflow").unlink(missing_ok=True)  # the second is made from nothing
    assert described[:2] == described[2:]
