"""docs/production.md: housekeeping is run; the servers are those of tests/production."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = "production.md"
TEXT = (ROOT / "docs" / DOCUMENT).read_text("utf-8")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A record without a run, in a folder of its own."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TORCHYARD_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TORCHYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_every_command_of_housekeeping_works(line, store, capsys):
    from torchyard.pipelines.cli import app

    words = shlex.split(line, comments=True)
    assert words[0] == "torchyard"
    app(words[1:], standalone_mode=False)
    assert capsys.readouterr().out


def test_the_servers_are_started_as_the_tests_start_them():
    servers = (ROOT / "tests" / "production" / "servers.py").read_text("utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    of_servers = re.findall(r"\b((?:MLFLOW|PREFECT)_[A-Z0-9_]+|AWS_[A-Z_]+)=", blocks)
    assert len(of_servers) > 8
    for name in of_servers:
        assert name in servers, name
    for command in ("mlflow server", "prefect server start"):
        [line] = [each for each in blocks.splitlines() if each.startswith(command)]
        for word in shlex.split(line):
            assert not word.startswith("--") or f'"{word}"' in servers, word


def test_what_it_names_in_deploy_is_there():
    named = set(re.findall(r"deploy/[\w.-]+", TEXT))
    assert len(named) >= 3
    assert all((ROOT / each).exists() for each in named)


def test_the_automation_is_named_as_it_is():
    from torchyard.pipelines.services.scheduling.heartbeat import MISSED_BEATS, NAME

    assert f"*{NAME}*" in TEXT
    assert MISSED_BEATS == 3
