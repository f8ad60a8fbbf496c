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
# Has had a turn, and forked a process in it that is there until its input ends.
FORKING = """
import os
import sys
import torch
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.turns import in_turn
torch.set_num_threads(max(2, os.cpu_count()))
for _ in in_turn([0], torch.device("cpu"), Strategy()):
    if not os.fork():
        sys.stdin.read()
        os._exit(0)
print("trained", flush=True)
sys.stdin.read()
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


def soon_trained(strategy: Strategy | None = None) -> bool:
    """Whether three steps end, and wait for nobody for good."""
    arguments = ([], "a", 3, strategy)
    training = threading.Thread(target=trained, args=arguments, daemon=True)
    training.start()
    training.join(60)
    return not training.is_alive()


def at_once(*names: str, steps: int = 60) -> list[str]:
    """The marks of trainings begun at once."""
    marks: list[str] = []
    each = [threading.Thread(target=trained, args=(marks, name, steps)) for name in names]
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


def test_of_many_that_go_on_none_is_taken_for_stopped() -> None:
    marks = at_once(*map(str, range(20)), steps=10)  # the last waits for two seconds
    assert all(first == second for first, second in zip(marks[::2], marks[1::2], strict=True))


def test_long_steps_get_no_more_of_the_time_than_short_ones() -> None:
    trained_for = {0.4: 0.0, 0.01: 0.0}  # seconds, by those of a step

    def train(step: float) -> None:
        for _ in in_turn(iter(lambda: trained_for[0.4] > 1.5, True), CPU, Strategy()):
            began = time.monotonic()
            time.sleep(step)
            trained_for[step] += time.monotonic() - began

    both = [threading.Thread(target=train, args=(step,)) for step in trained_for]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert trained_for[0.01] > trained_for[0.4] / 2


def test_processes_that_train_one_network_do_not_wait_for_the_turn(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(Strategy):
        world_size = 2

    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    assert soon_trained(Both())


def test_one_thread_waits_for_nobody(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    torch.set_num_threads(1)
    assert soon_trained()


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


def test_a_turn_ends_with_the_training_whatever_it_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 10_000)
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trained\n"
        assert soon_trained()


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


def test_each_wait_for_a_stopped_process_is_short(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "ALONG_SECONDS", 1.0)
    holder.send_signal(signal.SIGSTOP)
    waits = []
    steps = in_turn(range(120), CPU, Strategy())
    while True:
        began = time.monotonic()
        if next(steps, None) is None:
            break
        waits.append(time.monotonic() - began)
        time.sleep(2 if len(waits) == 10 else 0.01)  # as if it had been stopped, too
    assert len([wait for wait in waits if wait > 0.5]) > 1
    assert max(waits) < 5


def test_a_place_that_cannot_be_had_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "turns").touch()
    marks: list[str] = []
    trained(marks, "a", 3)
    assert len(marks) == 6
