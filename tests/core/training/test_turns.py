"""Trainings that want all processors take turns; nobody waits for one that does not go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.core.small_training import make_network, run_fit
from torchyard.core.training import turns
from torchyard.core.training.events import EpochDone, Event
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.turns import in_turn

CPU = torch.device("cpu")
# Has the turn for good, and says so.
HOLDER = """
import os
import torch
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.turns import in_turn
torch.set_num_threads(max(2, os.cpu_count()))
for _ in in_turn([0], torch.device("cpu"), Strategy()):
    print("turn", flush=True)
    while True:
        input()
"""


@pytest.fixture(autouse=True)
def meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test's own, and a thread for each processor."""
    monkeypatch.setenv("TORCHYARD_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, os.cpu_count() or 1))
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that has the turn."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "turn\n"
        yield process
        process.kill()


def trained(marks: list[str], name: str, steps: int, strategy: Strategy | None = None) -> None:
    """Steps of 10 ms, each with a mark where it begins and where it ends."""
    for _ in in_turn(range(steps), CPU, strategy or Strategy()):
        marks.append(name)
        time.sleep(0.01)
        marks.append(name)


def at_once(*names: str) -> list[str]:
    """The marks of trainings begun at once."""
    marks: list[str] = []
    each = [threading.Thread(target=trained, args=(marks, name, 60)) for name in names]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    return marks


def test_no_step_begins_within_anothers_and_all_have_their_turns() -> None:
    marks = at_once("a", "b", "c")
    assert all(first == second for first, second in zip(marks[::2], marks[1::2], strict=True))
    half = marks[: len(marks) // 2]
    assert {"a", "b", "c"} == set(half)  # not one after the other


def test_processes_that_train_one_network_do_not_wait_for_the_turn(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(Strategy):
        world_size = 2

    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    trained([], "a", 3, Both())  # it would wait for the holder


def test_one_thread_waits_for_nobody(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    torch.set_num_threads(1)
    trained([], "a", 3)


def test_a_killed_process_has_no_turn(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    marks: list[str] = []
    waiting = threading.Thread(target=trained, args=(marks, "a", 3))
    waiting.start()
    time.sleep(0.3)
    assert not marks
    holder.kill()
    waiting.join()
    assert len(marks) == 6


def test_a_training_waits_for_its_turn(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    events: list[Event] = []
    with monkeypatch.context() as no_patience:
        no_patience.setattr(turns, "PATIENCE", 0)
        run_fit(tmp_path / "first", make_network())  # imports what an optimizer needs
    arguments = (tmp_path / "run", make_network())
    fitting = threading.Thread(target=run_fit, args=arguments, kwargs={"emit": events.append})
    fitting.start()
    time.sleep(0.5)
    assert not events
    holder.kill()
    fitting.join()
    assert isinstance(events[-1], EpochDone)


def test_nobody_waits_for_good_for_a_stopped_process(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    marks: list[str] = []
    trained(marks, "a", 30)
    assert len(marks) == 60


def test_a_place_that_cannot_be_had_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "turns").touch()
    marks: list[str] = []
    trained(marks, "a", 3)
    assert len(marks) == 6
