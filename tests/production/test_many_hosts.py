"""One model over two hosts: this one, and a namespace that it reaches by one cable alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from tests.production.second_host import second_host
from tests.production.servers import free_port
from torchyard.core.config.resolve import resolve
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.core.training import checkpoint
from torchyard.core.training.events import EpochDone, GoesOn
from torchyard.core.training.parallel.nodes import KEY
from torchyard.pipelines.worker.process import Worker

pytestmark = [pytest.mark.production, pytest.mark.timeout(900)]

SECONDS = 400.0  # the machine may be busy
CONFIG = {
    "dataset": {"name": "random_vectors"},
    "model": {"name": "linear"},
    "loss": {"name": "cross_entropy"},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "device": "cpu",
}
SETTINGS = {"epochs": 12, "batch_size": 30, "log_every": 2, "validation": 0.1, "seed": 4}
KILLED_AFTER = 3  # epochs


@pytest.fixture
def other():
    with second_host() as other:
        if isinstance(other, str):
            pytest.skip(other)
        yield other


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY, "a key for two hosts")


@pytest.fixture
def two_hosts(other):
    """The settings of a training on both."""
    endpoint = f"{other.here}:{free_port()}"
    return SETTINGS | {"parallel": "ddp", "nodes": 2, "rendezvous": endpoint}


def train(folder, data, settings, on_event=lambda event: None):
    """Train as `torchyard run` has its worker do."""
    folder.mkdir(exist_ok=True)
    config = CONFIG | {"train": settings}
    with closing(Worker(print)) as worker:
        return worker.call("train", on_event, config=config, data=str(data), folder=str(folder))


@pytest.fixture
def data(tmp_path):
    resolved = resolve(CONFIG, host())
    return prepare_dataset(
        "random_vectors", resolved.dataset, tmp_path / "cache", lambda *step: None
    ).folder


@contextmanager
def joined(other, settings, home):
    """`torchyard join` on the other host; yields what waits for (exit status, output)."""
    process = subprocess.Popen(
        [*other.prefix, sys.executable, "-m", "torchyard", "join", settings["rendezvous"]],
        env=os.environ | {"TORCHYARD_CACHE": str(home / "cache"), "HOME": str(home)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield lambda: (process.communicate(timeout=SECONDS)[0], process.returncode)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def there(tmp_path):
    """What the other host has of its own."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


def assert_alike(folder: Path, reference: Path) -> None:
    mine, theirs = (checkpoint.load(each / "last.pt") for each in (folder, reference))
    assert mine["position"]["step"] == theirs["position"]["step"]
    for name, weight in theirs["network"].items():
        torch.testing.assert_close(mine["network"][name], weight, rtol=1e-5, atol=1e-5)


class Killer:
    """Has the other host lose power once some epochs are done."""

    def __init__(self, other):
        self._other, self._killed = other, threading.Event()
        self.events = []

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, EpochDone) and event.epoch == KILLED_AFTER:
            self._other.lose_power()


def test_two_hosts_train_what_one_does(other, two_hosts, data, there, tmp_path):
    train(tmp_path / "one", data, SETTINGS)
    with joined(other, two_hosts, there) as ended:
        done = train(tmp_path / "two", data, two_hosts)
        output, status = ended()
    assert status == 0, output
    assert done["placement"]["processes"] == "2"
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert not list(there.rglob("*.pt"))  # the first host alone writes
    assert not list(there.rglob("mlruns"))


def test_a_host_that_dies_fails_the_run_which_then_goes_on(other, two_hosts, data, there, tmp_path):
    train(tmp_path / "one", data, SETTINGS)
    killer = Killer(other)
    with joined(other, two_hosts, there), pytest.raises(RunError) as caught:
        train(tmp_path / "two", data, two_hosts, killer)
    assert "lost" in str(caught.value) or "no sign of life" in str(caught.value)
    found = checkpoint.load(checkpoint.find(tmp_path / "two"))
    assert found["position"]["epoch"] in (KILLED_AFTER - 1, KILLED_AFTER)
    with joined(other, two_hosts, there) as ended:
        train(tmp_path / "two", data, two_hosts, killer.events.append)  # as `resume` does
        output, status = ended()
    assert status == 0, output
    assert any(isinstance(event, GoesOn) for event in killer.events)
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_a_run_goes_on_by_itself_without_a_host_that_dies(other, two_hosts, data, there, tmp_path):
    train(tmp_path / "one", data, SETTINGS)
    killer = Killer(other)
    with joined(other, two_hosts, there):
        settings = two_hosts | {"min_nodes": 1, "max_restarts": 2}
        done = train(tmp_path / "two", data, settings, killer)
    assert any(isinstance(event, GoesOn) for event in killer.events)
    assert done["placement"]["processes"] == "1"
    assert_alike(tmp_path / "two", tmp_path / "one")
