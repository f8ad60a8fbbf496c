"""A working folder for a module's runs, and their store."""

import pytest


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory):
    """A working folder of its own: other tests have runs in the workspace's."""
    own = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own)
        yield own


@pytest.fixture(scope="module")
def client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
