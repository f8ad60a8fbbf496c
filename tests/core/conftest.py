"""A store of its own for each test that asks for one."""

import shutil

import pytest

from torchyard.core.tracking.store import open_store


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
