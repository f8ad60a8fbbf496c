"""Which commit a run is from."""

import subprocess
from pathlib import Path

import pytest

from torchyard.core.tracking.provenance import git_tags


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_known_in_a_repository_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

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


def test_nothing_that_a_repository_configures_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, ran = tmp_path / "repository", tmp_path / "ran"
    repository.mkdir()
    ran.mkdir()
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")

    def configure(where: Path) -> None:
        script = tmp_path / "script"
        script.write_text(f'#!/bin/sh\ntouch "{ran}/$1"\n')
        script.chmod(0o700)
        hooks = tmp_path / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "post-index-change").write_text(f"#!/bin/sh\ntouch {ran}/hook\n")
        (hooks / "post-index-change").chmod(0o700)
        settings = {
            "core.fsmonitor": f"{script} fsmonitor",
            "core.hooksPath": str(hooks),
            "filter.x.clean": f"{script} clean",
            "filter.a.b=c.process": f"{script} process",
            "filter.a.b=c.required": "true",
        }
        for name, value in settings.items():
            git("-C", str(where), "config", name, value)

    git("init", "--quiet", "inner")
    (repository / "inner/a.txt").write_text("a")
    git("-C", "inner", "add", ".")
    git("-C", "inner", "commit", "--quiet", "--message", "one")
    git("init", "--quiet", ".")
    (repository / "a.txt").write_text("a")
    (repository / "b.txt").write_text("a")
    git("add", "a.txt", "b.txt")
    git("submodule", "--quiet", "add", str(repository / "inner"), "inside")
    git("commit", "--quiet", "--message", "one")
    (repository / ".gitattributes").write_text("a.txt filter=x\nb.txt filter=a.b=c\n")
    configure(repository)
    configure(repository / "inside")
    for file in ("a.txt", "b.txt", "inside/a.txt"):
        (repository / file).write_text("b")
    ran_by_git_itself = "fsmonitor"
    subprocess.run(["git", "status"], capture_output=True, check=False)
    assert (ran / ran_by_git_itself).exists()
    for file in ran.iterdir():
        file.unlink()

    assert git_tags()["mlflow.source.git.dirty"] == "true"
    assert list(ran.iterdir()) == []


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags().get("mlflow.source.git.commit") is None
