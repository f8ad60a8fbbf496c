"""What tests of pipelines share."""

import pytest


@pytest.fixture(scope="module")
def client(workspace):
    """MLflow's client of the workspace's runs."""
    return workspace.client()
