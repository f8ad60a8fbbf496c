"""Where, when and with what something was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.home import PEERS, ROOT

OURS = ("torch", "torchvision", "prefect", "mlflow", "numpy", "pillow")
THEIRS = ("torch", "pytorch-lightning", "accelerate", "fastai", "timm")


def machine() -> str:
    """Processor, cores, memory, system."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = psutil.virtual_memory().total / 2**30
    system = platform.system()
    if system == "Linux":
        system = f"{platform.freedesktop_os_release().get('PRETTY_NAME', '')} (Linux)"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {system}, no GPU used"


def commit() -> str:
    """The project's commit, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":!benchmarks/results",
        ":!benchmarks/RESULTS.md",
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def versions() -> dict[str, str]:
    """Of what is compared, in both environments."""
    found = {"Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in OURS}
    if PEERS.exists():
        program = f"import importlib.metadata as m; print(*map(m.version, {THEIRS}))"
        done = subprocess.run([str(PEERS), "-c", program], capture_output=True, text=True)
        for name, version in zip(THEIRS, done.stdout.split(), strict=False):
            if found.setdefault(name, version) != version:
                found[f"{name} of the peers"] = version
    return found


def facts() -> dict[str, object]:
    """All of it, for a result."""
    return {
        "machine": machine(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions(),
    }
