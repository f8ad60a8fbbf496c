"""Stores and a bucket for the tests that ask for one."""

import shutil

import pytest

from tests.bucket import s3_bucket
from torchyard.core.data.remote import connection
from torchyard.core.tracking.store import open_store


@pytest.fixture
def client(recorded):
    """Of the store with some runs to ask for."""
    return recorded.client


@pytest.fixture
def runs(recorded):
    """The ids of those runs, by what they are."""
    return recorded.ids


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database without a run: copying one is quicker than making it table by table."""
    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    open_store(f"sqlite:///{database}")
    return database


@pytest.fixture
def new_store(empty_database, tmp_path, monkeypatch):
    """The client of a store without runs, the one in use, in a working folder of its own."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TORCHYARD_RUNS"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(empty_database, tmp_path / "mlruns" / "mlflow.db")
    return open_store(uri)


@pytest.fixture(scope="module")
def bucket_server():
    with s3_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """An empty bucket, which TORCHYARD_SHARED names."""
    bucket_server.clear()
    monkeypatch.setenv("TORCHYARD_SHARED", "s3://data/team")
    monkeypatch.setattr(connection, "PAUSE", 0.01)
    monkeypatch.setattr(connection, "TIMEOUT", 120.0)  # on a busy machine
    monkeypatch.setattr(connection, "CONNECT", 60.0)
    return bucket_server
