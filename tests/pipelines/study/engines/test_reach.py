"""An address at which no engine answers is said before a study begins."""

import socket
import time

import pytest

from torchyard.core.errors import UnreachableError
from torchyard.core.study.plan import StudySettings
from torchyard.pipelines.study.engines import reach


def asked(engine, address):
    reach.check_reachable(StudySettings(engine=engine, address=address))


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_an_address_where_nothing_listens(engine):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnreachableError, match=rf"study.address: 127.0.0.1:{port}: no .*refused"):
        asked(engine, f"127.0.0.1:{port}")
    with pytest.raises(UnreachableError, match="form host:port"):
        asked(engine, "127.0.0.1:port")


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_an_address_where_something_listens_and_says_nothing(engine, monkeypatch):
    monkeypatch.setattr(reach, "SECONDS", 1.0)
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"no {engine.capitalize()} answers there"):
            asked(engine, address)
    assert time.monotonic() - begun < 60  # and not the minutes that they try by themselves


def test_an_engine_without_an_address_is_not_asked():
    asked("dask", None)
    asked("pool", "a-pool")
