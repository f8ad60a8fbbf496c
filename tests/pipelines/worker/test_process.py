"""The worker as its parent has it: started, called, interrupted, killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.errors import RunError
from torchyard.pipelines.worker.process import (
    MEMORY,
    SPINS,
    Worker,
    abort_shared_worker,
    shared_worker,
    worker_of,
)


def until(happened, otherwise):
    deadline = time.monotonic() + 150
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def test_its_memory_and_waiting_are_set_unless_configured_otherwise(worker, monkeypatch):
    def settings(one):
        process = psutil.Process(one._process.pid)
        until(process.environ, "it has no environment")  # empty for a moment after its start
        kept = process.environ()
        names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GOMP_SPINCOUNT")
        return tuple(kept.get(name) for name in names)

    assert settings(worker) == (*MEMORY.values(), SPINS["GOMP_SPINCOUNT"])
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a count would overrule it
    configured = Worker()
    try:
        assert settings(configured) == ("131072", MEMORY["MALLOC_MMAP_THRESHOLD_"], None)
    finally:
        configured.close()


def test_a_stage_runs_beside_its_caller(worker, tmp_path):
    with worker.submit("prepare", config=config(), cache=str(tmp_path)) as result:
        until(lambda: list(tmp_path.rglob("manifest.json")), "nothing is prepared")
        folder = result()["folder"]
    assert Path(folder, "manifest.json").exists()


def test_a_stage_whose_caller_fails_meanwhile_ends_with_the_worker(cache):
    worker = Worker()
    with (
        pytest.raises(RunError, match="the caller's own"),
        worker.submit("check", config=config(), cache=cache),
    ):
        raise RunError("the caller's own")
    assert not worker.alive


def test_a_waiting_worker_prepares_nothing_before_the_next_stage(cache, monkeypatch):
    lines = []
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    worker = Worker(lines.append)
    worker.wait_for_stage()

    def imported(module):
        return any(line.endswith(f" {module}") for line in lines)

    until(lambda: imported("torchyard.pipelines.worker.stages"), "the worker imports nothing")
    time.sleep(1)
    assert not imported("torch._dynamo")
    worker.call("check", config=config(), cache=cache)
    until(lambda: imported("torch._dynamo"), "a stage leaves it waiting")
    worker.close()


def test_a_dead_worker_asked_to_wait_is_no_error_of_its_own(cache):
    worker = Worker()
    worker._process.kill()
    worker._process.wait()
    worker.wait_for_stage()
    with pytest.raises(RunError, match="'check' died \\(SIGKILL"):
        worker.call("check", config=config(), cache=cache)


def test_an_error_in_the_listener_ends_the_worker(cache, tmp_path):
    worker = Worker()

    def follow(event):
        raise RunError("the listener's own")

    data = worker.call("prepare", config=config(), cache=cache)["folder"]
    with pytest.raises(RunError, match="the listener's own"):
        worker.call("train", follow, config=config(), data=data, folder=str(tmp_path))
    assert not worker.alive


def test_a_worker_that_is_killed_is_an_error_that_says_so(cache):
    worker = Worker()
    pid = worker._process.pid
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(RunError, match="'check' died \\(SIGKILL"):
        worker.call("check", config=config(), cache=cache)
    assert not worker.alive
    with pytest.raises(RunError, match="died"):
        worker.call("check", config=config(), cache=cache)


def test_the_shared_worker_is_replaced_when_it_has_ended():
    first = shared_worker()
    assert shared_worker() is first
    first.close()
    second = shared_worker()
    assert second is not first
    assert second.alive
    second.close()


ORPHAN = """
import time
from torchyard.core.training.events import EpochDone
from torchyard.pipelines.worker.process import Worker
worker = Worker()
print(worker._process.pid, flush=True)
time.sleep(60)
"""


def test_a_worker_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    child = psutil.Process(pid)
    parent.kill()
    parent.wait()
    until(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
        "the worker outlived its parent",
    )


def test_the_working_folder_stands_in_for_no_module(tmp_path, monkeypatch, cache):
    for name in ("core", "plugins"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "queue.py").write_text("raise ImportError('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    worker = Worker()
    assert worker.call("check", config=config(), cache=cache)["device"]
    worker.close()


def test_a_training_goes_on_after_an_epoch_only_if_its_parent_says_so(worker, cache, tmp_path):
    settings = config("model=linear", "train.epochs=4")
    data = worker.call("prepare", config=settings, cache=cache)["folder"]
    told = []

    def go_on(done):
        told.append(done.epoch)
        return done.epoch < 2

    def trained(folder, **answered):
        (tmp_path / folder).mkdir(exist_ok=True)
        arguments = {"config": settings, "data": data, "folder": str(tmp_path / folder)}
        return worker.call("train", **answered, **arguments)

    assert trained("pruned", go_on=go_on)["fit"]["epochs"] == 2
    assert told == [1, 2]
    # An answer that came too late, to the last epoch, does not disturb what is called next.
    whole = trained("whole", go_on=lambda done: True)
    again = trained("pruned")
    assert (whole["fit"]["epochs"], again["fit"]["epochs"]) == (4, 4)
    assert again["weights_digest"] == whole["weights_digest"]


def test_each_place_has_a_worker_of_its_own_and_all_are_aborted(monkeypatch):
    monkeypatch.setattr("torchyard.pipelines.worker.process._shared", {})
    first = shared_worker()
    with worker_of(1):
        second = shared_worker()
        assert second is shared_worker() is not first
    assert shared_worker() is first
    abort_shared_worker(RunError("enough"))
    for one in (first, second):
        with pytest.raises(RunError, match="enough"):
            one.call("check")
        one.close()
