"""How the command's process starts and ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = (sys.executable, "-m", "torchyard")


def marked(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TORCHYARD_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def started_another(process):
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path):
    """Start a command that is known, with all it starts, by a mark in its environment."""
    started = []

    def begin(*words):
        environment = {**os.environ, "TORCHYARD_TEST_MARK": str(tmp_path)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_wrong_configuration_leaves_no_process_that_imports_torch(tmp_path, start):
    refused = start("run", "digits", "modle=lenet")
    wait_for(lambda: started_another(refused) or refused.poll() is not None)  # it imports torch
    _, errors = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "modle" in errors
    wait_for(lambda: not marked(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_of_the_first_imports_is_a_line_and_no_traceback(tmp_path, start):
    interrupted = start("run", "digits")
    wait_for(lambda: started_another(interrupted))
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130
    assert "Traceback" not in errors
    assert "Interrupted." in errors
    wait_for(lambda: not marked(str(tmp_path)))


@pytest.mark.parametrize(("words", "status"), [(["plugins"], 0), (["help"], 2), ([], 2)])
def test_it_ends_with_the_status_of_the_command_line(start, words, status):
    done = start(*words)
    printed, errors = done.communicate(timeout=120)
    assert done.returncode == status
    assert printed or errors


FIRST_LINE = """
import sys
from types import SimpleNamespace

from torchyard.pipelines.__main__ import main

def write(text):
    print(*sys.modules, file=sys.__stdout__)
    raise SystemExit

sys.argv = ["torchyard", "run", "digits"]
sys.stderr = SimpleNamespace(isatty=lambda: True, write=write)
main()
"""


def test_the_first_line_is_there_before_anything_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", FIRST_LINE], capture_output=True, text=True)
    imported = done.stdout.split()
    ours = {name for name in imported if name.startswith("torchyard")}
    packages = {"torchyard", "torchyard.pipelines"}
    assert ours == packages | {"torchyard.import_guard", "torchyard.pipelines.__main__"}
    assert not {"logging", "pydantic", "pluggy", "rich", "typer"} & set(imported)
