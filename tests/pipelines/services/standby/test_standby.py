"""Runs that the standby of `torchyard up` takes over are as others, and end as others."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import psutil
import pytest

from tests.pipelines.services.sandbox import LONG, Sandbox, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="there is a standby on Linux alone"),
]
SHORT = ("run", "digits", "model=straight", "train.epochs=2", "train.seed=7")
OF_EACH = ("torchyard.process", "torchyard.lease", "mlflow.", "prefect.", "checkpoints")  # tags


def run(sandbox: Sandbox, **variables: str) -> tuple[dict[str, Any], dict[str, str], bool]:
    """What a run said of each epoch, what it recorded, and whether the command's process did it."""
    sandbox.environment |= variables
    process = sandbox.start(*SHORT, "--json")
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    events = [json.loads(line) for line in printed.splitlines()]
    epochs = {each["epoch"]: (each["loss"], each["accuracy"]) for each in events if "epoch" in each}
    [result] = [each for each in events if each["event"] == "result"]
    tags = sandbox.tags(result["run_id"])
    own = int(tags["torchyard.process"].split()[0]) == process.pid
    return epochs, {k: v for k, v in tags.items() if not k.startswith(OF_EACH)}, own


def test_a_run_that_is_taken_over_is_the_same_as_one_that_is_not(sandbox: Sandbox) -> None:
    sandbox.torchyard("up")
    sandbox.wait_for_standby()
    epochs, tags, own = run(sandbox)
    assert not own
    wrong = sandbox.start("run", "digits", "--epochs", "2")
    said = wrong.communicate(timeout=300)[0]
    assert "(torchyard run --help)" in said, said
    # What was read at the start is noticed: that run goes on by itself, the next is taken over.
    assert run(sandbox, PREFECT_LOGGING_EXTRA_LOGGERS="a") == (epochs, tags, True)
    sandbox.wait_for_standby()
    assert not run(sandbox)[2]
    # A plugin is read by each run.
    plugin = sandbox.folder / "work" / "torchyard_plugins" / "straight.py"
    plugin.write_text(
        plugin.read_text().replace("LazyLinear(", "LazyLinear(bias=False, out_features=")
    )
    assert run(sandbox)[0] != epochs
    (sandbox.folder / "work" / ".env").write_text("PREFECT_FLOWS_DEFAULT_RETRIES=1\n")
    assert run(sandbox)[2]
    sandbox.wait_for_standby()
    assert not run(sandbox)[2]


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_taken_over_ends_with_its_command(
    sandbox: Sandbox, ends: signal.Signals
) -> None:
    sandbox.torchyard("up")
    sandbox.wait_for_standby()
    command = sandbox.start("run", "digits", *LONG)
    flow_run, record = eventually(sandbox.training)
    number = int(record["torchyard.process"].split()[0])
    assert number != command.pid
    command.send_signal(ends)
    command.communicate(timeout=120)
    assert command.returncode == (130 if ends == signal.SIGINT else -ends)
    assert eventually(lambda: not psutil.pid_exists(number))
    assert eventually(lambda: sandbox.record(flow_run)["status"] == "KILLED")
    assert eventually(lambda: sandbox.processes("worker.serve") == [])
