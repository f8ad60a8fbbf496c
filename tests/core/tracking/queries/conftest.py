"""A store with some runs to ask for."""

import pytest


@pytest.fixture
def client(recorded):
    return recorded.client


@pytest.fixture
def runs(recorded):
    return recorded.ids
