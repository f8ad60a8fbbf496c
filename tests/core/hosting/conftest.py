"""A plugin folder for the tests of this folder."""

import pytest

from torchyard.core.hosting.host import host


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A plugin folder; `host()` is read anew for the test and again after it."""
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    yield tmp_path
    host.cache_clear()
