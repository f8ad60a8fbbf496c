"""One model over two hosts: this one, and a namespace that it reaches by one cable alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from tests.ports import free_port
from tests.production.second_host import second_host
from torchyard.core.config.resolve import read_config
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.core.training import checkpoint
from torchyard.core.training.events import EpochDone, GoesOn
from torchyard.core.training.parallel.nodes import KEY
from torchyard.pipelines.worker.process import Worker

pytestmark = [pytest.mark.production, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SECONDS = 400.0  # the machine may be busy
EPOCHS, FIRST_KILL, SECOND_KILL = 12, 3, 6
WORK = (
    *("dataset=random_vectors", "model=linear", "optimizer=sgd", "optimizer.lr=0.1"),
    *(f"train.epochs={EPOCHS}", "train.batch_size=30", "train.log_every=2", "train.seed=4"),
    *("train.validation=0.1", "device=cpu"),
)
# Stands for SLURM: the second task runs on the other host, where nothing but its files are its own.
SRUN = """#!/bin/bash
SLURM_PROCID=0 "$@" & first=$!
cd {there}
SLURM_PROCID=1 HOME={there} TORCHYARD_CACHE={there}/cache {prefix} "$@" >{there}/output 2>&1
status=$?
wait $first && exit $status
"""


@pytest.fixture
def other():
    with second_host() as other:
        if isinstance(other, str):
            pytest.skip(other)
        yield other


@pytest.fixture
def there(tmp_path):
    """What the other host has of its own."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train into a folder as `torchyard run` has its worker do."""
    monkeypatch.setenv(KEY, "a key for two hosts")
    dataset = read_config("digits", WORK, ROOT / "pipelines/presets", host()).dataset
    data = prepare_dataset("random_vectors", dataset, tmp_path / "cache", lambda *step: None)

    def train(name, *settings, on_event=lambda event: None):
        resolved = read_config("digits", [*WORK, *settings], ROOT / "pipelines/presets", host())
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with closing(Worker(print)) as worker:
            arguments = {"data": str(data.folder), "folder": str(folder)}
            config = resolved.config.model_dump(mode="json")
            done = worker.call("train", on_event, config=config, **arguments)
        return folder, done

    return train


@contextmanager
def joined(other, endpoint, there):
    """`torchyard join` on the other host; yields what waits for (output, exit status)."""
    process = subprocess.Popen(
        [*other.prefix, sys.executable, "-m", "torchyard", "join", endpoint],
        env=os.environ | {"TORCHYARD_CACHE": str(there / "cache"), "HOME": str(there)},
        cwd=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield lambda: (process.communicate(timeout=SECONDS)[0], process.returncode)
    finally:
        process.kill()
        process.wait()


def assert_alike(folder: Path, reference: Path) -> None:
    mine, theirs = (checkpoint.load(each / "last.pt") for each in (folder, reference))
    assert mine["position"]["step"] == theirs["position"]["step"]
    for name, weight in theirs["network"].items():
        torch.testing.assert_close(mine["network"][name], weight, rtol=1e-5, atol=1e-5)


def test_a_job_of_two_hosts_records_one_run_with_the_weights_of_one_process(
    other, there, train, tmp_path
):
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "srun": SRUN.format(there=there, prefix=" ".join(other.prefix)),
        "hostname": f"#!/bin/bash\necho {other.here}\n",
        "torchyard": f'#!/bin/bash\nexec {sys.executable} -m torchyard "$@"\n',
    }
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != KEY} | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), *sys.path])),
        "TORCHYARD_CACHE": str(tmp_path / "own cache"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
    }
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        ["bash", str(ROOT / "deploy" / "slurm.sbatch"), "digits", *WORK, "--json"],
        cwd=here, env=environment, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    output = (there / "output").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + output
    assert "done; the first host has the result" in output
    [run] = (here / "mlruns" / "runs").iterdir()
    assert json.loads(done.stdout.splitlines()[-1])["run_id"] == run.name
    reference, _ = train("one")
    assert_alike(run, reference)
    # The first host alone writes.
    assert not list(there.rglob("*.pt"))
    assert not list(there.rglob("mlruns"))


def test_a_host_that_dies_fails_the_run_or_is_gone_on_without(other, there, train):
    endpoint = f"{other.here}:{free_port()}"
    two = ("train.parallel=ddp", "train.nodes=2", f"train.rendezvous={endpoint}")
    reference, _ = train("one")
    events = []

    def kill_after(epoch):
        def on_event(event):
            events.append(event)
            if isinstance(event, EpochDone) and event.epoch == epoch:
                other.lose_power()

        return on_event

    def went_on():
        return [event.epoch for event in events if isinstance(event, GoesOn)]

    with joined(other, endpoint, there), pytest.raises(RunError) as caught:
        train("two", *two, on_event=kill_after(FIRST_KILL))
    assert "lost" in str(caught.value) or "no sign of life" in str(caught.value)
    assert not went_on()
    # As `torchyard resume` does; now it is to go on alone.
    settings = ("train.max_restarts=2", "train.min_nodes=1")
    with joined(other, endpoint, there):
        folder, done = train("two", *two, *settings, on_event=kill_after(SECOND_KILL))
    resumed, alone = went_on()
    assert resumed <= FIRST_KILL + 1 <= SECOND_KILL <= alone + 1
    assert done["placement"]["processes"] == "1"
    assert_alike(folder, reference)
