"""Several processes train what one would: real processes, started by torch's launcher."""

import json
import multiprocessing
import os
import re
import signal

import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from torchyard.core.config.resolve import resolve
from torchyard.core.errors import DivergedError, RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.core.training import checkpoint
from torchyard.core.training.events import EpochDone, GoesOn
from torchyard.core.training.parallel import launcher
from torchyard.pipelines.worker.stages import training

FAILING = '''
"""A loss that fails in one process only, after some steps."""
import os
import signal

from torchyard import LossParams, hookimpl


class Failing(LossParams):
    """Kills its process, or raises."""

    how: str

    def build(self, num_classes):
        import torch

        calls = 0

        def loss(logits, targets):
            nonlocal calls
            calls += 1
            if calls > 3 and os.environ.get("RANK") == "1":
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ZeroDivisionError("boom in the loss")
            return torch.nn.functional.cross_entropy(logits, targets)

        return loss


@hookimpl
def register_losses(register):
    register("failing", Failing)
'''

NORMED = '''
"""A network with batch norm."""
from torchyard import ModelParams, hookimpl


class Normed(ModelParams):
    """Two layers, and a batch norm between them."""

    def build(self, input_shape, num_classes):
        from torch import nn

        return nn.Sequential(
            nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
        )


@hookimpl
def register_models(register):
    register("normed", Normed)
'''


@pytest.fixture
def trained(tmp_path_factory):
    """Train with a configuration's changes; gives result, weights and events."""
    cache = tmp_path_factory.mktemp("cache")

    def train(folder, *, dataset="random_vectors", model="linear", loss=None, lr=0.1, **settings):
        config = {
            "dataset": {"name": dataset},
            "model": {"name": model},
            "loss": loss or {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9},
            "train": {"epochs": 3, "batch_size": 30, "log_every": 2} | settings,
            "device": "cpu",
        }
        resolved = resolve(config, host())
        data = prepare_dataset(dataset, resolved.dataset, cache, lambda *step: None)
        folder.mkdir()
        events = []
        done = training.train(config, str(data.folder), str(folder), events.append)
        return done, checkpoint.load(folder / "last.pt"), events

    threads = torch.get_num_threads()
    # torch's launcher sets handlers and leaves them, as nothing but the worker process should.
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield train
    for each, handler in handlers.items():
        signal.signal(each, handler)
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = True
    assert not multiprocessing.active_children()
    assert not [p for p in psutil.Process().children(recursive=True) if _is_rank(p)]


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def epochs_of(events):
    return [event for event in events if isinstance(event, EpochDone)]


@pytest.mark.slow
def test_two_processes_train_what_one_does(trained, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    # 100 samples in batches of 30: the last has 10; of the 90 left after the split, also 30.
    one, alone, alone_events = trained(tmp_path / "one", validation=0.1, seed=4)
    two, together, events = trained(
        tmp_path / "two", validation=0.1, seed=4, parallel="ddp", processes=2
    )
    assert (one["placement"]["processes"], two["placement"]["processes"]) == ("1", "2")
    for name, weight in alone["network"].items():
        torch.testing.assert_close(together["network"][name], weight, rtol=1e-5, atol=1e-6)
    assert together["position"]["step"] == alone["position"]["step"]
    assert len(together["random"]) == 2
    for mine, theirs in zip(epochs_of(alone_events), epochs_of(events), strict=True):
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-4)
        assert theirs.accuracy == mine.accuracy
        assert theirs.validation_loss == pytest.approx(mine.validation_loss, rel=1e-4)
    printed = capfd.readouterr().out
    for process in (0, 1):
        sizes = "input size [15, 5], output size [15, 2]"
        assert f"In Model, process {process}: {sizes}" in printed
    assert "Outside: input size [30, 5], output size [30, 2]" in printed
    assert "train.processes=2 on 1 cores: they wait for each other" in caplog.text


@pytest.mark.slow
def test_two_processes_train_what_one_does_in_parts_and_averaged(trained, tmp_path):
    settings = {"accumulate": 4, "ema": 0.9, "seed": 4}
    _, alone, _ = trained(tmp_path / "one", ema=0.9, seed=4)
    _, together, _ = trained(tmp_path / "two", parallel="ddp", processes=2, **settings)
    for name, weight in alone["network"].items():
        torch.testing.assert_close(together["network"][name], weight, rtol=1e-5, atol=1e-6)
    for name, average in alone["average"]["averages"].items():
        other = together["average"]["averages"][name]
        torch.testing.assert_close(other, average, rtol=1e-5, atol=1e-6)


def test_data_parallel_shows_the_sizes_inside_and_outside(trained, tmp_path, capfd):
    _, wrapped, _ = trained(tmp_path / "wrapped", parallel="data_parallel")
    _, plain, _ = trained(tmp_path / "plain")
    for name, weight in plain["network"].items():
        assert torch.equal(wrapped["network"][name], weight)
    printed = capfd.readouterr().out
    assert "\tIn Model: input size [30, 5], output size [30, 2]" in printed
    assert "\nOutside: input size [30, 5], output size [30, 2]" in printed


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "failing.py").write_text(FAILING)
    (folder / "normed.py").write_text(NORMED)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(folder))
    host.cache_clear()
    yield
    host.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message", "details"),
    [
        (
            "raise",
            r" failed in failing \(.*failing\.py, line \d+\): ZeroDivisionError: boom in the loss",
            'ZeroDivisionError("boom',
        ),
        ("kill", r" died \(SIGKILL\)\.", ""),
    ],
)
def test_a_process_that_dies_fails_the_run_and_leaves_no_other(
    trained, plugins, tmp_path, how, message, details
):
    loss = {"name": "failing", "how": how}
    with pytest.raises(RunError) as caught:
        trained(tmp_path / "run", loss=loss, parallel="ddp", processes=2)
    assert re.fullmatch("Process 1 of the training" + message, str(caught.value))
    assert details in caught.value.details


@pytest.mark.parametrize(
    ("written", "raised"),
    [
        (["lost", "gloo: reset"], "RunError: The connection to another process of the training"),
        (["run", "a stage failed", "where"], "RunError: a stage failed"),
        (["diverged", "The loss became nan", ""], "DivergedError: The loss became nan"),
        (["user", ["it is wrong"]], "UserError: it is wrong"),
        (None, "RunError: Process 1 of the training failed."),
    ],
)
def test_what_a_process_wrote_of_its_end_is_what_the_run_says(tmp_path, written, raised):
    if written:
        (tmp_path / "error_1.json").write_text(json.dumps(written))
    failure = ProcessFailure(local_rank=1, pid=os.getpid(), exitcode=1, error_file="")
    cause = launcher._cause(ChildFailedError("train", {1: failure}), tmp_path, None)
    assert f"{type(cause).__name__}: {cause}".startswith(raised)


@pytest.mark.slow
def test_synchronized_batch_norms_make_two_processes_train_what_one_does(
    trained, plugins, tmp_path
):
    settings = {"model": "normed", "epochs": 2, "seed": 4}
    _, alone, _ = trained(tmp_path / "one", **settings)
    settings |= {"parallel": "ddp", "sync_batch_norm": True}
    _, together, _ = trained(tmp_path / "two", **settings)
    for name, weight in alone["network"].items():
        torch.testing.assert_close(together["network"][name], weight, rtol=1e-5, atol=1e-5)


KILLED_ONCE = '''
"""A loss whose second process is killed once."""
import os
import signal
from pathlib import Path

from torchyard import LossParams, hookimpl


class KilledOnce(LossParams):
    """Kills its process in the second epoch, if no file says that it did."""

    mark: str

    def build(self, num_classes):
        import torch

        calls = 0

        def loss(logits, targets):
            nonlocal calls
            calls += 1
            mark = Path(self.mark)
            if calls > 5 and os.environ.get("RANK") == "1" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.nn.functional.cross_entropy(logits, targets)

        return loss


@hookimpl
def register_losses(register):
    register("killed_once", KilledOnce)
'''


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_from_the_checkpoint(trained, plugins, tmp_path):
    (tmp_path / "plugins" / "killed_once.py").write_text(KILLED_ONCE)
    _, alone, _ = trained(tmp_path / "one", seed=4)
    loss = {"name": "killed_once", "mark": str(tmp_path / "mark")}
    settings = {"parallel": "ddp", "max_restarts": 1, "seed": 4}
    _, together, events = trained(tmp_path / "two", loss=loss, **settings)
    assert (tmp_path / "mark").exists()
    assert [event.epoch for event in events if isinstance(event, GoesOn)] == [2]
    for name, weight in alone["network"].items():
        torch.testing.assert_close(together["network"][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_a_single_process_would_say_is_said_of_all(trained, tmp_path):
    with pytest.raises(DivergedError) as caught:
        trained(tmp_path / "run", lr=1e38, epochs=20, parallel="ddp", processes=2)
    assert str(caught.value).startswith(("The loss became", "The weights became"))


def test_processes_belong_to_ddp_and_share_a_batch():
    def problems(**settings):
        with pytest.raises(UserError) as caught:
            resolve({"dataset": {"name": "digits"}, "train": settings}, host())
        return caught.value.problems

    assert problems(processes=2) == ["train: processes are those of ddp: set train.parallel=ddp"]
    assert problems(parallel="ddp", processes=4, batch_size=3) == [
        "train: 4 processes cannot share a batch of 3"
    ]
    several = {"parallel": "ddp", "nodes": 2}
    reached = several | {"rendezvous": "10.0.0.1:29400"}
    assert problems(nodes=2) == ["train: nodes is for ddp: set train.parallel=ddp"]
    assert problems(sync_batch_norm=True) == [
        "train: sync_batch_norm is for ddp: set train.parallel=ddp"
    ]
    assert problems(**several) == [
        "train: several nodes need an address of the first host, which the others reach: set "
        "train.rendezvous=HOST:PORT"
    ]
    for wrong in ("10.0.0.1", ":29400", "10.0.0.1:0", "10.0.0.1:http", "10.0.0.1:70000"):
        assert problems(**several, rendezvous=wrong) == [
            f"train: '{wrong}' is no HOST:PORT, such as 10.0.0.1:29400"
        ]
    assert problems(parallel="ddp", rendezvous="10.0.0.1:29400") == [
        "train: rendezvous is for several hosts: set train.nodes, e.g. 2"
    ]
    assert problems(**reached, min_nodes=1) == [
        "train: min_nodes is for going on: set train.max_restarts, e.g. 3"
    ]
    assert problems(**reached, min_nodes=3, max_restarts=1) == [
        "train: min_nodes=3 is more than nodes=2"
    ]
    assert os.environ.get("RANK") is None
