"""What has to be the same in the standby and in a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from torchyard.pipelines.services.standby.sameness import (
    folder_settings,
    loaded_files,
    read_early,
)

# Says which variables Python modules of these packages look for while the standby imports.
LOOKED_FOR = """
import json, os, sys

PACKAGES = ("matplotlib", "numpy", "pandas", "PIL", "scipy", "torch", "torchvision", "triton")
BETWEEN = ("os", "_collections_abc", "collections.abc", "__main__")
found, look_up = set(), type(os.environ).__getitem__

def noted(self, name):
    frame = sys._getframe(1)
    while frame and frame.f_globals.get("__name__") in BETWEEN:
        frame = frame.f_back
    if frame and frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES:
        found.add(name)
    return look_up(self, name)

type(os.environ).__getitem__ = noted
from torchyard.pipelines.services.standby import process
process._load()
print(json.dumps(sorted(found)), flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="there is none elsewhere")
def test_variables_that_are_read_at_an_import_are_compared() -> None:
    program = [sys.executable, "-P", "-c", LOOKED_FOR]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    names = json.loads(printed.splitlines()[-1])
    assert "TORCHDYNAMO_VERBOSE" in names  # else it looked at nothing
    assert [name for name in names if not read_early({name: ""})] == []


def test_variables_of_a_run_are_handed_over() -> None:
    names = ("PATH", "TORCHYARD_CACHE", "MLFLOW_TRACKING_URI", "PREFECT__FLOW_RUN_ID", "MY_OWN")
    assert read_early(dict.fromkeys(names, "")) == {}


def test_settings_of_a_working_folder_are_those_that_an_import_reads(tmp_path: Path) -> None:
    assert folder_settings(str(tmp_path)) == {}
    (tmp_path / ".env").write_text("TOKEN=a\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert folder_settings(str(tmp_path)) == {}
    (tmp_path / ".env").write_text("TOKEN=b\nexport prefect_flows_default_retries=3\n")
    (tmp_path / "pyproject.toml").write_text("[tool.prefect.flows]\ndefault_retries = 2\n")
    (tmp_path / "matplotlibrc").write_text("font.size: 20\n")
    assert folder_settings(str(tmp_path)) == {
        ".env": ["export prefect_flows_default_retries=3"],
        "pyproject.toml": {"flows": {"default_retries": 2}},
        "matplotlibrc": "font.size: 20\n",
    }


def test_files_of_the_users_settings_are_compared() -> None:
    from prefect.settings import get_current_settings

    profiles = str(get_current_settings().profiles_path)
    assert profiles in loaded_files()
    assert any(path.endswith("/matplotlibrc") for path in loaded_files())
