"""The store of a module's runs."""

import pytest


@pytest.fixture(scope="module")
def client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
