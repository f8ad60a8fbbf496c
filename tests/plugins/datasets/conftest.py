"""A server to download from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.datasets.published_files import Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(tmp_path / "served")
    yield running
    running.stop()
