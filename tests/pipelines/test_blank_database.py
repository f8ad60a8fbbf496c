"""Prefect's blank database: copied where there is none, and never over one."""

import sys

import pytest

from pipelines.blank_database import begin_with_blank, blank_database


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    blank_database().parent.mkdir(parents=True)
    blank_database().write_bytes(b"blank")
    (tmp_path / "home").mkdir()
    return f"sqlite+aiosqlite:///{tmp_path}/home/prefect.db"


def test_a_new_database_begins_as_a_copy_and_is_kept_from_then_on(tmp_path, url):
    database = tmp_path / "home" / "prefect.db"
    begin_with_blank(url)
    assert database.read_bytes() == b"blank"
    database.write_bytes(b"runs")
    begin_with_blank(url)
    assert database.read_bytes() == b"runs"
    assert list(database.parent.iterdir()) == [database]
    assert blank_database().read_bytes() == b"blank"


def test_without_a_blank_one_prefect_makes_its_own(tmp_path, url):
    blank_database().unlink()
    begin_with_blank(url)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "other", ["postgresql+asyncpg://me@host/prefect", "sqlite+aiosqlite:///file::memory:?uri=true"]
)
def test_what_is_no_file_is_left_to_prefect(tmp_path, url, monkeypatch, other):
    monkeypatch.chdir(tmp_path / "home")
    begin_with_blank(other)
    assert list((tmp_path / "home").iterdir()) == []
