"""The command line as a process: its exit status, what it prints and what it imports."""

import os
import re
import subprocess
import sys

HEAVY = {"torch", "torchvision", "mlflow", "prefect", "numpy", "sklearn", "pandas", "matplotlib"}


SETTINGS = ("TORCHYARD_PLUGINS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")


def torchyard(folder, *words, options=(), **environment):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in SETTINGS and not key.lower().endswith("_proxy")
    }
    return subprocess.run(
        [sys.executable, *options, "-m", "torchyard", *words],
        cwd=folder,
        env=kept | {"TORCHYARD_CACHE": str(folder / "cache"), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def imported(stderr):
    """Split what `-X importtime` prints: the packages imported, and what else was said."""
    lines = stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    return packages, [line for line in lines if line not in times]


def at_once(folder, *words, **environment):
    """Run a command that must answer without a heavy import and leave nothing behind."""
    done = torchyard(folder, *words, options=("-X", "importtime"), **environment)
    packages, said = imported(done.stderr)
    assert "torchyard" in packages  # so the imports were seen
    assert not HEAVY & packages
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert "Traceback" not in done.stderr
    return done, said


def refused(folder, *words, **environment):
    done, said = at_once(folder, *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(line.startswith("error: ") for line in said)
    return [line.removeprefix("error: ") for line in said]


def run_id(printed):
    return re.search(r"\b[0-9a-f]{32}\b", printed)[0]
