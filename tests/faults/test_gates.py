"""Gates that end their process or never answer: a refusal with a reason, and the run is done."""

import json

import pytest

from tests.pipelines.command_line import run_id
from torchyard.core.errors import RunError

pytestmark = pytest.mark.faults

PLUGIN = """
import ctypes, os, subprocess, time
from torchyard import GateParams, Verdict, hookimpl


def leave():
    ctypes.CDLL(None)._exit(0)  # which nobody can keep from ending the process


def leave_a_child():
    if os.fork() == 0:
        time.sleep(600)
    leave()


ENDS = {
    "exits": lambda: os._exit(0),
    "leaves": leave,
    "crashes": lambda: ctypes.string_at(0),
    "hangs": lambda: time.sleep(600),
    "waits": lambda: subprocess.run(["sleep", "600"]),
    "leaves_a_child": leave_a_child,
    "interrupts": lambda: exec("raise KeyboardInterrupt"),
}


class Ends(GateParams):
    \"\"\"Ends somehow.\"\"\"

    how: str

    def build(self):
        return lambda candidate, champion: ENDS[self.how]() or Verdict(True, "it came back")


@hookimpl
def register_gates(register):
    register("ends", Ends)
"""
REASONS = {
    "exits": "it could not judge: SystemExit: os._exit(0)",
    "leaves": "it could not judge: The process that ran 'judge' died (exit status 0).",
    "crashes": "it could not judge: The process that ran 'judge' died (SIGSEGV).",
    "hangs": "it could not judge: it has not judged within 3 seconds",
    "waits": "it could not judge: it has not judged within 3 seconds",
    "leaves_a_child": "it could not judge: it has not judged within 3 seconds",
    "interrupts": "it could not judge: KeyboardInterrupt: ",
}


@pytest.fixture(scope="module", autouse=True)
def plugins(workspace):
    with workspace.plugin_file("ending", PLUGIN):
        yield


@pytest.fixture(scope="module")
def client(workspace):

    return workspace.client()


def test_a_gate_that_ends_its_process_refuses(workspace, client):
    gates = json.dumps([*({"name": "ends", "how": how} for how in REASONS), "beats_champion"])
    settings = ("promote.model=ended", f"promote.gates={gates}", "promote.gate_seconds=3")
    printed = workspace.invoke("run", "digits", "model=linear", "train.epochs=1", *settings)
    assert "not the champion of ended (there is none): refused by ends" in printed
    run = client.get_run(run_id(printed))
    assert run.info.status == "FINISHED"
    why = run.data.tags["torchyard.why"].split("; ")
    assert why == [*(f"ends: {reason}" for reason in REASONS.values()),
                   "beats_champion: there was no champion before"]  # fmt: skip
    with pytest.raises(RunError, match="refused by ends"):
        workspace.invoke("promote", run.info.run_id, "gates=[{name: ends, how: exits}]")
