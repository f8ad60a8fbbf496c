"""SIGKILL at random moments, again and again: what is resumed ends as if nothing had happened.

`make faults` sets TORCHYARD_KILLS and prints the table.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

KILLS = int(os.environ.get("TORCHYARD_KILLS", "4"))
SETTINGS = (
    "digits",
    "train.epochs=12",
    "train.batch_size=16",
    "train.log_every=7",
    "train.validation=0.1",
    "train.log_gradients=true",
    "augmentations=[random_crop]",
)
# The tasks of a run, and the line that ends each.
ENDS = {
    "start": None,  # the MLflow run's folder is there
    "prepare": "prepare ",
    "train": r"train .* steps\s+in",
    "evaluate": "evaluate ",
    "report": "report ",
    "end": None,
}
TASKS = list(ENDS)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60 + 120 * KILLS)]


@dataclass
class Figures:
    """Everything about a finished run that must not depend on how often it was killed."""

    status: str
    digest: str
    parameters: dict
    points: dict
    doubled: list
    artifacts: list
    models: list

    def differences(self, other):
        return [name for name, value in vars(self).items() if value != vars(other)[name]]


@dataclass
class Kill:
    task: str
    victim: str
    outcome: str
    differences: list = field(default_factory=list)


def figures(client, run_id):
    run = client.get_run(run_id)
    points, doubled = {}, []
    for key in run.data.metrics:
        history = client.get_metric_history(run_id, key)
        steps = Counter(point.step for point in history)
        doubled += [(key, step) for step, times in steps.items() if times > 1]
        if not re.search("seconds|per_second|system/|memory", key):
            points[key] = sorted((point.step, point.value) for point in history)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    return Figures(
        run.info.status,
        run.data.tags.get("weights_digest", ""),
        run.data.params,
        points,
        doubled,
        sorted(found.path for found in client.list_artifacts(run_id)),
        [model.status for model in models],
    )


def recorded(client):
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {run.info.run_id: run for run in client.search_runs(experiments)}


class Watched:
    """A command that runs, and the task it is in."""

    def __init__(self, workspace, *arguments):
        self.runs = Path(workspace.folder, "mlruns/runs")
        self.before = set(self.runs.glob("*"))
        self.task = "prepare" if "resume" in arguments else "start"
        self.lasted = Counter()
        self.process = subprocess.Popen(
            workspace.command(*arguments),
            cwd=workspace.folder,
            env=workspace.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            if self.task == "start":
                self.task = "prepare"
            pattern = ENDS[self.task]
            if pattern and re.match(pattern, line):
                self.task = TASKS[TASKS.index(self.task) + 1]

    def reach(self, task):
        """Wait until it is in that task or beyond, or has ended."""
        while self.process.poll() is None:
            if self.task == "start" and set(self.runs.glob("*")) - self.before:
                self.task = "prepare"
            if TASKS.index(self.task) >= TASKS.index(task):
                return
            self.wait(0.003)

    def wait(self, seconds):
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.lasted[self.task] += time.monotonic() - started

    def kill(self, victim):
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            workers = [
                child for child in children if "torchyard.pipelines.worker.serve" in child.cmdline()
            ]
            for doomed in {"all": children, "parent": [], "worker": workers}[victim]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    doomed.send_signal(signal.SIGKILL)
            if victim != "worker":
                self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def kill_once(workspace, rng, lasts, *arguments):
    """Start a command and kill it at a random moment; returns its task then, and the victim."""
    watched = Watched(workspace, *arguments)
    task = rng.choice(TASKS)
    watched.reach(task)
    watched.wait(rng.uniform(0, lasts[task]))
    victim, killed_in = rng.choice(["all", "parent", "worker"]), watched.task
    watched.kill(victim)
    return killed_in, victim


def one_kill(workspace, client, rng, reference, lasts):
    before = set(recorded(client))
    task, victim = kill_once(workspace, rng, lasts, "run", *SETTINGS)
    new = {key: run for key, run in recorded(client).items() if key not in before}
    if not new:
        return Kill(task, victim, "nothing was recorded yet")
    [(run_id, run)] = new.items()
    if run.info.status == "FINISHED":
        return Kill(task, victim, "had finished", figures(client, run_id).differences(reference))
    outcome = "resumed"
    if rng.random() < 0.25:
        again, _ = kill_once(workspace, rng, lasts, "resume", run_id)
        outcome = f"killed again in {again}, resumed"
        if client.get_run(run_id).info.status == "FINISHED":
            return Kill(task, victim, outcome, figures(client, run_id).differences(reference))
    workspace.invoke("resume", run_id)
    return Kill(task, victim, outcome, figures(client, run_id).differences(reference))


def table(kills):
    rows = Counter((kill.task, kill.outcome.split(" in ")[0]) for kill in kills)
    lines = ["| killed in | what followed | kills | not equal |", "|---|---|---|---|"]
    for (task, outcome), count in sorted(rows.items()):
        wrong = sum(
            bool(kill.differences)
            for kill in kills
            if (kill.task, kill.outcome.split(" in ")[0]) == (task, outcome)
        )
        lines.append(f"| {task} | {outcome} | {count} | {wrong} |")
    return "\n".join(lines)


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(workspace):
    from mlflow import MlflowClient

    watched = Watched(workspace, "run", *SETTINGS)
    watched.reach("end")
    watched.wait(None)
    watched.kill("worker")
    client = MlflowClient(f"sqlite:///{workspace.folder}/mlruns/mlflow.db")
    [run_id] = recorded(client)
    reference = figures(client, run_id)
    assert reference.models == ["READY"]
    assert reference.doubled == []

    rng = random.Random(int(os.environ.get("TORCHYARD_KILLS_SEED", "0")))
    kills = []
    for number in range(KILLS):
        kills.append(one_kill(workspace, client, rng, reference, watched.lasted))
        print(f"{number + 1:>3}  {kills[-1]}", flush=True)
    print(f"\n{table(kills)}\n")
    assert [kill for kill in kills if kill.differences] == []
    left = [run for run in recorded(client).values() if run.info.status == "RUNNING"]
    if left:  # of the last kills: the next start ends them
        workspace.invoke("run", "digits", "train.epochs=1")
        left = [run for run in recorded(client).values() if run.info.status == "RUNNING"]
    assert left == []
    assert not list(Path(workspace.folder, "mlruns/runs").rglob(".*"))  # nothing half-written
