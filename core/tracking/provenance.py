"""Where a run comes from: the program, the person and the commit."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping


MACHINE, PROCESS = "torchyard.host", "torchyard.process"


def owner_tags() -> dict[str, str]:
    """Tags that identify this process: the machine, the process id, and when it started."""
    own = psutil.Process()
    return {MACHINE: platform.node(), PROCESS: f"{own.pid} {own.create_time():.2f}"}


def owner_lives(tags: Mapping[str, str]) -> bool | None:
    """Whether the process that a run's tags name is alive; None if it is of another machine."""
    if tags.get(MACHINE) != platform.node() or PROCESS not in tags:
        return None
    number, started = tags[PROCESS].split()
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False


def user_name() -> str:
    """The name of the account; "unknown" where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return "unknown"


def source_tags() -> dict[str, str]:
    """The tags `mlflow.start_run` sets for a script: the UI's Source and User columns."""
    return {
        "mlflow.source.name": sys.argv[0] if sys.argv and sys.argv[0] else "<console>",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
    }


def git_tags() -> dict[str, str]:
    """Commit, branch and whether tracked files differ; empty outside a repository."""
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            # Asking for the status must not lock the index, which the user's own git may need.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = status.stdout.splitlines()
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    if heads.get("branch.oid", "(initial)") == "(initial)":
        return {}
    dirty = any(not line.startswith("# ") for line in lines)
    return {
        "mlflow.source.git.commit": heads["branch.oid"],
        "mlflow.source.git.branch": heads["branch.head"],
        "mlflow.source.git.dirty": str(dirty).lower(),
    }
