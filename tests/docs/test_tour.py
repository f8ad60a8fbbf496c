"""docs/tour.md: its commands, typed into a shell one after the other as its reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = pytest.mark.slow  # four runs, and the servers of `torchyard up`

ROOT = Path(__file__).parents[2]
DOCUMENT = "tour.md"


@pytest.fixture(scope="module")
def shell(tmp_path_factory, document):
    """Run a line in a working folder and a home of the reader's; returns what it prints."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "work").mkdir()
    document.write_plugins(folder / "work")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_", "TORCHYARD_"))
    }
    environment = clean | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "TORCHYARD_CACHE": str(folder / "cache"),
    }

    def run(line):
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder / "work", env=environment,
            text=True, capture_output=True, timeout=220,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("torchyard down")


def test_every_command_of_the_tour_works(line, shell):
    if line == "make run":  # what it does here, without its installation
        resolved = subprocess.run(
            ["make", "-n", "--no-print-directory", "run"], cwd=ROOT, text=True, capture_output=True
        )
        line = resolved.stdout.splitlines()[-1].removeprefix(".venv/bin/")
        assert line == "torchyard run digits"
    printed = shell(line)
    if line.startswith("torchyard run "):
        assert "of 359 test samples right" in printed
    says = {
        "runs": r"run +accuracy .*\n.*#\d",
        "compare": r"(is better than|cannot be told apart)",
        "plugins": "width",
        "promote": "is now champion of digits: version 1",
        "models": "champion",
        "status": r"http://127\.0\.0\.1:\d+",
    }
    command = line.split()[1]
    assert re.search(says.get(command, "."), printed)
