"""A command that is killed with SIGKILL at a random moment, and what its run then records."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

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
    versions: list  # the aliases of each registered version made of it

    def differences(self, other):
        return [name for name, value in vars(self).items() if value != vars(other)[name]]


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
    versions = [
        client.get_model_version(version.name, version.version).aliases
        for version in client.search_model_versions(f"run_id = '{run_id}'")
    ]
    return Figures(
        run.info.status,
        run.data.tags.get("weights_digest", ""),
        {key: value for key, value in run.data.params.items() if key != "promote.model"},
        points,
        doubled,
        sorted(found.path for found in client.list_artifacts(run_id)),
        [model.status for model in models],
        versions,
    )


def recorded(client):
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {run.info.run_id: run for run in client.search_runs(experiments)}


def workers_of(parent):
    """The torch workers that a process has started."""
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):  # it has ended since
            if "torchyard.pipelines.worker.serve" in child.cmdline():
                found.append(child)
    return found


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
            workers = workers_of(self.process.pid)
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
