"""The import name `torchyard`: its public names, what its import brings, each module once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchyard

ROOT = Path(__file__).parents[1]
HEAVY = {"matplotlib", "mlflow", "numpy", "pandas", "prefect", "pydantic", "rich", "torch", "typer"}


def python(*arguments, cwd=ROOT, **settings):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_every_public_name_is_there_and_no_other_is_promised():
    assert sorted(torchyard.__all__) == torchyard.__all__
    for name in torchyard.__all__:
        assert getattr(torchyard, name) is not None
    assert torchyard._MODULES.keys() == set(torchyard.__all__)
    with pytest.raises(AttributeError, match="module 'torchyard' has no attribute 'evaluat'"):
        torchyard.evaluat  # noqa: B018


def test_its_import_brings_nothing_heavy():
    done = python("-c", "import sys, torchyard; print(*sys.modules)")
    assert HEAVY & set(done.stdout.split()) == set()
    done = python("-c", "import sys, torchyard; torchyard.evaluate; print(*sys.modules)")
    assert "numpy" in done.stdout.split()


@pytest.mark.parametrize("folder", ["core", "pipelines", "plugins"])
def test_a_folder_under_its_own_name_is_refused(folder, tmp_path):
    done = python("-c", f"import {folder}")
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith(f"ImportError: '{folder}' is {ROOT / folder / '__init__.py'}, a folder")
    assert f"write 'torchyard.{folder}'" in last
    assert "'from torchyard import ModelParams, hookimpl'" in last


REPORT = """
import atexit, collections, json, os, sys


def report(root={root!r}, folder={folder!r}):
    modules = collections.defaultdict(dict)
    for name, module in list(sys.modules.items()):
        file = os.path.realpath(getattr(module, "__file__", None) or "")
        if file.startswith(root) and "site-packages" not in file:
            modules[file][id(module)] = name
    with open(os.path.join(folder, f"{{os.getpid()}}.json"), "w") as file:
        json.dump([list(names.values()) for names in modules.values()], file)


def leave(status, end=os._exit):
    report()
    end(status)


os._exit = leave
atexit.register(report)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["torchyard", "plugins", "check"],
        pytest.param(["torchyard", "check", "digits"], marks=pytest.mark.slow),
        pytest.param(
            ["pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests/core/hosting"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_module_is_loaded_once_with_the_clone_as_working_folder(tmp_path, words):
    # Every Python that is started imports `sitecustomize`.
    report = REPORT.format(root=f"{ROOT}/", folder=str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(report)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = python("-m", *words, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    processes = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert max(map(len, processes)) > 20
    for modules in processes:
        assert [names for names in modules if len(names) > 1] == []


def test_what_gates_import_to_compare_is_light():
    done = python("-c", "import sys, torchyard; torchyard.compare; print(*sys.modules)")
    assert (HEAVY - {"numpy"}) & set(done.stdout.split()) == set()
