"""A real MLflow store without runs."""

import pytest


@pytest.fixture
def client(new_store):
    return new_store
