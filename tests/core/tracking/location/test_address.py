"""Addresses of stores as people write them, and folders of any name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.tracking.runs import start
from torchyard.core.errors import UserError
from torchyard.core.tracking.location.address import (
    check_address,
    database_of,
    is_server,
    local_address,
)
from torchyard.core.tracking.queries.lookup import find_run
from torchyard.core.tracking.store import check_writable, open_existing, tracking_uri

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000/mlflow", "http://localhost:5000/mlflow"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("me:secret@host.lan:5000", "'host.lan:5000': a server's address begins with http://"),
        ("https:/host", "is like http://127.0.0.1:5000"),
        ("http://host:99999", "Port out of range"),
        ("http://ho st", "is like http://127.0.0.1:5000"),
        ("HTTP://host", "Did you mean 'http'?"),
        ("htps://host", "Did you mean 'https'?"),
        ("s3://bucket/runs", "begins with 's3:'.  (accepts: http, https, sqlite,"),
        ("postgres://h/d", "Did you mean 'postgresql'?"),
        ("postgresql+nope://h/d", "Can't load plugin: sqlalchemy.dialects:postgresql.nope"),
        ("mysql+nodriver://h/d", "Can't load plugin"),
        ("postgresql+pg8000://h/d", "the driver 'pg8000' is not installed here"),
        ("sqlite://", "in memory keeps no record; give sqlite:////FOLDER/mlflow.db"),
        ("sqlite:///", "in memory keeps no record"),
        ("sqlite:///:memory:", "in memory keeps no record"),
        ("sqlite://mlruns/mlflow.db", "three slashes: sqlite:///mlruns/mlflow.db"),
        ("sqlite:mlflow.db", "three slashes: sqlite:///mlflow.db"),
        ("sqlite+aiosqlite:///x.db", "write sqlite:///x.db"),
        ("sqlite:///file:/tmp/x.db?uri=true", "write the path of the file"),
        ("sqlite:////tmp/what?/mlflow.db", "is written %3F: sqlite:////tmp/what%3F/mlflow.db"),
        ("sqlite:///100%20/mlflow.db", "is written %25: sqlite:///100%2520/mlflow.db"),
        ("file:///tmp/mlruns", "no longer keeps runs in plain files"),
    ],
)
def test_an_address_that_no_store_has_is_refused_with_how_to_write_it(
    address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "100%20").mkdir()
    with pytest.raises(UserError) as refused:
        check_writable(address)
    [problem] = refused.value.problems
    assert problem.startswith("MLFLOW_TRACKING_URI: '")
    assert says in problem
    assert "secret" not in problem
    assert [path.name for path in tmp_path.rglob("*")] == ["100%20"]


@pytest.mark.parametrize(
    "address",
    [
        *("http://host", "https://me:pass@host:5000/mlflow", "databricks", "databricks://profile"),
        *("uc", "sqlite:///a%20b/mlflow.db", "sqlite:///mlflow.db?timeout=60"),
        "mysql+there://host/database",
    ],
)
def test_an_address_that_a_store_can_have_is_accepted(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.dialects import registry
    from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql

    class There(MySQLDialect_pymysql):
        @classmethod
        def import_dbapi(cls) -> ModuleType:
            return sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.impls, "mysql.there", lambda: There)
    check_address(address, address)


@given(name=NAMES)
def test_the_address_of_a_database_names_its_file(name: str) -> None:
    from sqlalchemy.engine import make_url

    database = Path("/folder") / f"{name} " / "mlflow.db"
    address = local_address(database)
    assert database_of(address) == database
    assert make_url(address).database == str(database)
    assert not is_server(address)
    check_address(address, address)


def test_runs_are_kept_in_a_folder_of_any_name(
    tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "what? 100%20 a:b#c; q'uo\"te 猫 &=%3F"
    folder.mkdir()
    monkeypatch.chdir(folder)
    begun = start()
    begun.log_text("hello", "hello.txt")
    begun.finish("FINISHED")
    client = open_existing(tracking_uri())
    assert find_run(client, "latest").info.run_id == begun.run_id
    assert Path(client.download_artifacts(begun.run_id, "hello.txt")).read_text() == "hello"
    assert list(folder.rglob("hello.txt"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
