"""SIGKILL at random moments, again and again: what is resumed ends as if nothing had happened.

`make faults` sets TORCHYARD_KILLS and prints the table.
"""

import asyncio
import os
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.killing import Watched, figures, kill_once, recorded

KILLS = int(os.environ.get("TORCHYARD_KILLS", "9"))
COMMON = ("train.epochs=12", "train.batch_size=16", "train.log_every=7", "train.validation=0.1")
MLP = ("digits", "model=mlp", "model.hidden=[64]", *COMMON)
GATE = "{name: min_accuracy, threshold: 0.1}"
# What is in a run, and its settings.
KINDS = {
    "augmentation": ("digits", *COMMON, "augmentations=[random_crop]", "train.log_gradients=true"),
    "dropout": (*MLP, "model.dropout=0.3"),
    "cosine": (*MLP, "scheduler=cosine", "optimizer=adamw"),
    "patience": (*MLP, "optimizer.lr=0.05", "train.patience=2"),
    "bfloat16": (*MLP, "precision=bfloat16", "optimizer=sgd", "optimizer.momentum=0.9"),
    "compiled": ("digits", *COMMON, "train.compile=true"),
    "ddp": (*MLP, "train.parallel=ddp", "train.processes=2"),
    "promotion": (
        *MLP,
        "promote.model=none",
        "promote.gates=[{name: min_accuracy, threshold: 0.1}]",
    ),
    "photos": (
        *("digits", "dataset=image_folder", "dataset.path=photos", "dataset.image_size=32"),
        *("dataset.storage=encoded", "train.sampler=balanced", *COMMON),
        "augmentations=[random_resized_crop, horizontal_flip, color_jitter, random_erasing]",
    ),
    "mixing": (
        *("digits", "augmentations=[rotate, mixup_or_cutmix]", "scheduler=plateau", *COMMON),
    ),
    "averaged": (*MLP, "train.ema=0.95", "train.accumulate=2", "train.monitor=macro_f1"),
    "groups": (
        *(
            "digits",
            "optimizer.groups=[{match: 'conv*', lr: 0.0001}]",
            "optimizer.decay_norms=false",
        ),
        *("optimizer=adamw", "model.freeze=[conv*]", "model.freeze_epochs=3", *COMMON),
    ),
    "sam": (*MLP, "optimizer=sam", "optimizer.rho=0.05", "optimizer.lr=0.01"),
}
DAMAGES = {
    "a bit": lambda data, rng: flipped(data, rng.randrange(8 * len(data))),
    "its end": lambda data, rng: data[: rng.randrange(1, len(data))],
    "all zeros": lambda data, rng: bytes(len(data)),
    "everything": lambda data, rng: b"",
}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300 + 120 * KILLS)]


@dataclass
class Kill:
    kind: str
    task: str
    victim: str
    outcome: str
    damage: str = ""
    differences: list = field(default_factory=list)


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damage_checkpoint(workspace, run_id, rng):
    """Change the file of the last checkpoint; returns what became of it, "" if there is none."""
    folder = Path(workspace.folder, "mlruns/runs", run_id)
    files = sorted(folder.rglob("*.pt"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return ""
    damage = rng.choice(list(DAMAGES))
    files[-1].write_bytes(DAMAGES[damage](files[-1].read_bytes(), rng))
    return f"{damage} of {files[-1].name}"


def write_photos(folder):
    """JPEG files of many sizes: a class for each of three hues."""
    generator = np.random.default_rng(0)
    for number in range(150):
        name = ("red", "green", "blue")[number % 3]
        size = generator.integers(40, 90, 2)
        pixels = generator.integers(0, 200, (*size, 3)).astype(np.uint8)
        pixels[..., number % 3] += 55
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:03}.jpg", quality=90)


class Trial:
    """Runs of one kind: what one that is not killed records, and how long its tasks take."""

    def __init__(self, workspace, client, kind):
        self.workspace, self.client, self.kind = workspace, client, kind
        watched = Watched(workspace, "run", *self.settings(f"never-killed-{kind}"))
        before = set(recorded(client))
        watched.reach("end")
        watched.wait(None)
        watched.kill("worker")
        [run_id] = set(recorded(client)) - before
        self.reference, self.lasts = figures(client, run_id), watched.lasted
        assert (self.reference.status, self.reference.models) == ("FINISHED", ["READY"])
        assert self.reference.doubled == []
        assert len(self.reference.versions) == (kind == "promotion")

    def settings(self, model):
        """The settings, with a registered model of its own: no run's gate depends on another's."""
        return [each.replace("=none", f"={model}") for each in KINDS[self.kind]]

    def kill(self, number, rng, damaged):
        before = set(recorded(self.client))
        settings = self.settings(f"killed-{number}")
        task, victim = kill_once(self.workspace, rng, self.lasts, "run", *settings)
        new = {key: run for key, run in recorded(self.client).items() if key not in before}
        if not new:
            return Kill(self.kind, task, victim, "nothing was recorded yet")
        [(run_id, run)] = new.items()
        kill = Kill(self.kind, task, victim, "resumed")
        if run.info.status == "FINISHED":
            kill.outcome = "had finished"
        elif rng.random() < 0.25:
            again, _ = kill_once(self.workspace, rng, self.lasts, "resume", run_id)
            kill.outcome = f"killed again in {again}, resumed"
        if self.client.get_run(run_id).info.status != "FINISHED":
            if 10 * damaged < number + 1:  # a tenth of them
                kill.damage = damage_checkpoint(self.workspace, run_id, rng)
            self.workspace.invoke("resume", run_id)
        kill.differences = figures(self.client, run_id).differences(self.reference)
        return kill


def table(kills):
    lines = ["| | killed | again | damaged | not equal |", "|---|---|---|---|---|"]
    for of in ("task", "kind"):
        for name, count in sorted(Counter(getattr(kill, of) for kill in kills).items()):
            these = [kill for kill in kills if getattr(kill, of) == name]
            again = sum("again" in kill.outcome for kill in these)
            damaged = sum(bool(kill.damage) for kill in these)
            wrong = sum(bool(kill.differences) for kill in these)
            lines.append(f"| {name} | {count} | {again} | {damaged} | {wrong} |")
    return "\n".join(lines)


async def unfinished_flow_runs():
    """The flow and task runs that Prefect takes for running."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter

    state = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    async with get_client() as client:
        flows = await client.read_flow_runs(flow_run_filter=FlowRunFilter(**state))
        tasks = await client.read_task_runs(task_run_filter=TaskRunFilter(**state))
        return [run.name for run in (*flows, *tasks)]


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(workspace, monkeypatch):

    temporary = workspace.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setitem(workspace.environment, "TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)

    write_photos(workspace.folder / "photos")
    client = workspace.client()
    rng = random.Random(int(os.environ.get("TORCHYARD_KILLS_SEED", "0")))
    trials, kills = {}, []
    for number in range(KILLS):
        kind = list(KINDS)[number % len(KINDS)]
        if kind not in trials:
            trials[kind] = Trial(workspace, client, kind)
        damaged = sum(bool(kill.damage) for kill in kills)
        kills.append(trials[kind].kill(number, rng, damaged))
        print(f"{number + 1:>3}  {kills[-1]}", flush=True)
    print(f"\n{table(kills)}\n")
    assert [kill for kill in kills if kill.differences] == []
    workspace.invoke("run", "digits", "train.epochs=1")  # a start ends what the last kills left
    assert [run for run in recorded(client).values() if run.info.status == "RUNNING"] == []
    assert asyncio.run(unfinished_flow_runs()) == []
    assert not list(Path(workspace.folder, "mlruns/runs").rglob(".*"))  # nothing half-written
    assert list(temporary.iterdir()) == []
