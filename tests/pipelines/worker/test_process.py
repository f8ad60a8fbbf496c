"""The worker process: results, events, errors, death."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from torchyard.core.config.resolve import read_config
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.manager import host
from torchyard.core.training.events import EpochDone
from torchyard.pipelines.worker.process import Worker, shared_worker

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


def config(*overrides):
    return read_config("digits", overrides, PRESETS, host()).config.model_dump(mode="json")


def until(happened, otherwise):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def test_it_keeps_memory_that_it_will_need_again_unless_told_otherwise(worker, monkeypatch):
    def thresholds(one):
        kept = psutil.Process(one._process.pid).environ()
        return kept["MALLOC_TRIM_THRESHOLD_"], kept["MALLOC_MMAP_THRESHOLD_"]

    assert thresholds(worker) == (str(2**28), str(2**25))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    told = Worker()
    try:
        assert thresholds(told) == ("131072", str(2**25))
    finally:
        told.close()


def test_stages_from_data_to_exported_model(worker, cache, tmp_path):
    events = []

    settings = config("train.epochs=2", "train.validation=0.2", "train.threads=1")
    summary = worker.call("check", config=settings, cache=cache)
    assert (summary["parameters"], summary["shape"]) == (61_706, [1, 32, 32])
    first = worker.call("prepare", events.append, config=settings, cache=cache)
    second = worker.call("prepare", events.append, config=settings, cache=cache)
    assert not first["found"]
    assert second == {"folder": first["folder"], "found": True}
    trained = worker.call(
        "train", events.append, config=settings, data=first["folder"], folder=str(tmp_path)
    )
    done = [event for event in events if isinstance(event, EpochDone)]
    assert [event.epoch for event in done] == [1, 2]
    assert done[1].validation_accuracy > 0.3
    assert trained["placement"]["model_device"] == trained["placement"]["data_device"] == "cpu"
    assert trained["placement"]["threads"] == "1"
    assert trained["peaks"]["peak_memory_mib"] > 100
    again = tmp_path / "again"
    again.mkdir()
    repeated = worker.call("train", config=settings, data=first["folder"], folder=str(again))
    assert repeated["weights_digest"] == trained["weights_digest"]
    target = tmp_path / "predictions.npz"
    worker.call("evaluate", config=settings, data=first["folder"], weights=trained["weights"],
                target=str(target))  # fmt: skip
    assert target.stat().st_size > 0
    exported = tmp_path / "model.pt2"
    worker.call("export", config=settings, data=first["folder"], weights=trained["weights"],
                target=str(exported))  # fmt: skip
    assert exported.stat().st_size > 0


def test_a_users_mistake_arrives_whole_and_the_worker_lives_on(worker, cache):
    settings = config("model=alexnet", "loss.weight=[1,2]")
    with pytest.raises(UserError) as caught:
        worker.call("check", config=settings, cache=cache)
    assert len(caught.value.problems) == 2
    assert "'alexnet' cannot take samples of 1x32x32" in caught.value.problems[0]
    assert "weight has 2 values, the data has 10 classes" in caught.value.problems[1]
    assert worker.call("check", config=config(), cache=cache)["device"]


def test_an_unexpected_error_keeps_its_traceback(worker, cache):
    with pytest.raises(RunError, match="'prepare' failed: TypeError") as caught:
        worker.call("prepare", config=config(), cache=cache, nonsense=1)
    assert "Traceback" in caught.value.details


def test_an_unexpected_error_names_the_plugins_in_use_that_are_not_built_in(worker, cache):
    settings = {**config(), "plugins": {"model strange": "odd==1.0"}}
    with pytest.raises(RunError) as caught:
        worker.call("prepare", config=settings, cache=None)
    assert str(caught.value).startswith(
        "'prepare' failed (with model strange of odd==1.0): TypeError: "
    )


def test_a_stage_runs_beside_its_caller(worker, tmp_path):
    with worker.asked("prepare", config=config(), cache=str(tmp_path)) as answer:
        until(lambda: list(tmp_path.rglob("manifest.json")), "nothing is prepared")
        folder = answer()["folder"]
    assert Path(folder, "manifest.json").exists()


def test_a_stage_whose_caller_fails_meanwhile_ends_with_the_worker(cache):
    worker = Worker()
    with (
        pytest.raises(RunError, match="the caller's own"),
        worker.asked("check", config=config(), cache=cache),
    ):
        raise RunError("the caller's own")
    assert not worker.alive


def test_a_worker_that_is_told_to_wait_prepares_nothing_before_the_next_stage(cache, monkeypatch):
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


def test_telling_a_dead_worker_to_wait_is_no_error_of_its_own(cache):
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


def test_what_a_plugin_prints_is_passed_on(tmp_path, monkeypatch, cache):
    (tmp_path / "chatty.py").write_text(
        "from torchyard import ModelParams, hookimpl\n"
        "class Chatty(ModelParams):\n"
        "    '''Prints.'''\n"
        "    def build(self, input_shape, num_classes):\n"
        "        from torch import nn\n"
        "        print('hello from the plugin', flush=True)\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))\n"
        "@hookimpl\n"
        "def register_models(register):\n"
        "    register('chatty', Chatty)\n"
    )
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    lines = []
    worker = Worker(lines.append)
    worker.call("check", config=config() | {"model": {"name": "chatty"}}, cache=cache)
    worker.close()
    assert "hello from the plugin" in lines
