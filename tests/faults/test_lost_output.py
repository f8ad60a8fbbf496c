"""Output that cannot be written, in all ways: the run trains on, and its exit status is its own."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
SETTINGS = ("run", "digits", "train.epochs=30", "train.log_every=5")
PREPARE = b"prepare "  # begins the first line that is printed


@pytest.fixture
def begin(workspace):
    """Start a run with streams of its own."""
    started = []

    def start(*, prefix=(), env=(), **streams):
        environment = workspace.environment | {"PYTHONUNBUFFERED": "1"} | dict(env)
        command = [*prefix, *workspace.command(*SETTINGS)]
        started.append(subprocess.Popen(command, cwd=workspace.folder, env=environment, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def newest(workspace):

    client = workspace.client()
    [experiment] = [e for e in client.search_experiments() if e.name == "torchyard"]
    return client.search_runs([experiment.experiment_id], max_results=1)[0]


def finished(process, workspace):
    assert process.wait(200) == 0
    assert newest(workspace).info.status == "FINISHED"


def test_a_reader_that_goes_away(begin, workspace):
    run = begin(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout.readline().startswith(PREPARE)
    run.stdout.close()
    errors = run.stderr.read().decode()
    finished(run, workspace)
    assert "Standard output cannot be written: Broken pipe. The run goes on" in errors
    assert "Traceback" not in errors


def test_a_full_disk(begin, workspace):
    with Path("/dev/full").open("wb") as full:
        finished(begin(stdout=full, stderr=full), workspace)


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(begin, workspace, closed):
    finished(begin(prefix=["sh", "-c", f'exec "$@" {closed}', "sh"]), workspace)


@pytest.mark.parametrize(
    "encoding",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["terminal", "locale"],
)
def test_ascii(begin, workspace, encoding):
    run = begin(env=encoding, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printed, errors = run.communicate(timeout=200)
    finished(run, workspace)
    assert b"lenet\\u00b7adam\\u00b7digits #" in printed
    assert errors == b""


def test_a_terminal_that_is_closed(begin, workspace):
    terminal, side = pty.openpty()
    run = begin(stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    while PREPARE not in os.read(terminal, 10_000):
        pass
    os.close(terminal)
    run.send_signal(signal.SIGHUP)  # as the kernel does for a terminal's own processes
    finished(run, workspace)
