"""Which commit a run is from."""

import subprocess
from pathlib import Path

import pytest

from torchyard.core.tracking.provenance import git_tags


def test_the_commit_is_known_in_a_repository_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_tags().get("mlflow.source.git.commit") is None
    git("init", "--initial-branch", "trunk")
    assert git_tags().get("mlflow.source.git.commit") is None
    (tmp_path / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "--message", "one")
    assert git_tags().get("mlflow.source.git.commit") == git("rev-parse", "HEAD")
    assert git_tags()["mlflow.source.git.branch"] == "trunk"
    assert git_tags()["mlflow.source.git.dirty"] == "false"
    (tmp_path / "a.txt").write_text("b")
    assert git_tags()["mlflow.source.git.dirty"] == "true"


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags().get("mlflow.source.git.commit") is None
