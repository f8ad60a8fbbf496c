"""Where a run comes from: the program, the person and the commit."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Mapping


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
    """Commit, branch and whether tracked files differ; empty outside a repository.

    No program that the repository's own configuration names is run.
    """
    try:
        filters = _git("config", "--null", "--show-scope", "--name-only", "--get-regexp", "^filter")
        status = _git(
            *("status", "--porcelain=v2", "--branch", "--untracked-files=no"),
            "--ignore-submodules=dirty",  # for more, git runs in them, by their configuration
            settings=_HARMLESS | _without_programs(filters),
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = status.splitlines()
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    if heads.get("branch.oid", "(initial)") == "(initial)":
        return {}
    dirty = any(not line.startswith("# ") for line in lines)
    return {
        "mlflow.source.git.commit": heads["branch.oid"],
        "mlflow.source.git.branch": heads["branch.head"],
        "mlflow.source.git.dirty": str(dirty).lower(),
    }


_HARMLESS = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}


def _without_programs(filters: str) -> dict[str, str]:
    """Settings that switch off the filters that a repository's own configuration has a part in.

    Args:
        filters: scope and name of each setting of a filter, each ended by a NUL. Those of the
            user and the system stay: without git-lfs every file of its would differ.
    """
    fields = filters.split("\0")
    off: dict[str, str] = {}
    for scope, setting in zip(fields[::2], fields[1::2], strict=False):
        if scope in ("local", "worktree"):
            driver = setting.rpartition(".")[0]
            off |= {f"{driver}.clean": "", f"{driver}.process": "", f"{driver}.required": "false"}
    return off


def _git(*arguments: str, settings: Mapping[str, str] | None = None) -> str:
    """What git prints; settings come before those of any file.

    Raises:
        OSError, subprocess.TimeoutExpired: it cannot be run, or takes too long.
    """
    first = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    environment = {
        **os.environ,
        # Asking for the status must not lock the index, which the user's own git may need.
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "",  # what a partial clone lacks is not fetched
        "GIT_CONFIG_COUNT": str(first + len(settings or {})),
    }
    for index, (name, value) in enumerate((settings or {}).items(), first):
        environment |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": value}
    done = subprocess.run(
        ["git", *arguments], capture_output=True, timeout=5, env=environment, check=False
    )
    return done.stdout.decode(errors="replace")
