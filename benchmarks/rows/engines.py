"""A study on each engine, a worker of it killed in a trial: what is lost, and how long it takes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target
from benchmarks.home import Home
from torchyard.core.tracking.ownership.process import ProcessIdentity

TITLE = "Studies: 60 trials on each engine, a worker killed in each"
ENGINES = ("local", "pool", "dask", "ray")
TRIALS, WORKERS, KILL_AFTER = 60, 2, 2
WORK = ("digits", "model=linear", "optimizer=sgd", "optimizer.lr=log(1e-3,1)", "train.epochs=12")


@dataclass(frozen=True)
class Ended:
    """A study that has ended.

    Attributes:
        seconds: of its command.
        asked, completed, failed: trials, by their runs in MLflow.
        lost: trials of which there is no run that has ended.
        doubled: runs that a trial has more than one, and epochs that are recorded twice.
        killed: whether a worker was killed in a trial.
        digests: of the trials' weights.
    """

    seconds: float
    asked: int
    completed: int
    failed: int
    lost: int
    doubled: int
    killed: bool
    digests: dict[int, str]

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"{self.asked} asked, {self.completed} completed, {self.failed} failed, {self.lost} "
            f"lost, {self.doubled} doubled, in {self.seconds:.0f} s"
            + ("" if self.killed else "; no worker could be killed")
        )


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """The same study on each engine."""
    trials = 4 if bench.quick else TRIALS
    ended: dict[str, Ended] = {}
    for engine in ENGINES:
        with bench.home(engine) as home:
            ended[engine] = _study(home, engine, trials)
        bench.say(f"{engine}: {ended[engine].text}")
    seconds = tuple(Series(engine, (found.seconds,)) for engine, found in ended.items())
    wrong = tuple(
        Series(engine, (float(found.lost + found.doubled + found.failed),))
        for engine, found in ended.items()
    )
    none = tuple(Target(f"{engine}: none", engine, 0, False) for engine in ENGINES)
    notes = [f"{engine}: {found.text}." for engine, found in ended.items()]
    alike = all(found.digests == ended["local"].digests for found in ended.values())
    notes.append(
        f"`torchyard sweep {' '.join(WORK)} --sampler random --workers {WORKERS}`. "
        f"The weights of all trials are {'' if alike else 'NOT '}equal on all engines. A trial of "
        "a pool is a process of its own, which imports torch and MLflow; the workers of the "
        "others stay. Starts of servers and clusters are counted."
    )
    return [
        Comparison(f"{trials} trials, {WORKERS} workers", "seconds", False, seconds),
        Comparison("Trials lost, doubled or failed", "trials", False, wrong, none),
    ], notes


def _study(home: Home, engine: str, trials: int) -> Ended:
    if engine == "pool":
        home.torchyard("up")
    killed = threading.Event()
    done = threading.Event()
    thread = threading.Thread(target=_kill_one, args=(home, killed, done), daemon=True)
    thread.start()
    options = ["--engine", engine, "--trials", str(trials), "--workers", str(WORKERS)]
    try:
        finished = home.torchyard("sweep", *WORK, "--sampler", "random", "--name", engine, *options)
    finally:
        done.set()
        thread.join()
    return _read(home, engine, trials, finished.seconds, killed.is_set())


def _kill_one(home: Home, killed: threading.Event, done: threading.Event) -> None:
    """Kill a process that trains, once some trials have ended and one has a checkpoint."""
    runs = home.work / "mlruns" / "runs"
    while not done.wait(0.02):
        trained = list(runs.glob("*/predictions.parquet"))
        under_way = [
            file.parent
            for file in runs.glob("*/previous.pt")
            if not (file.parent / "predictions.parquet").exists()
        ]
        if len(trained) < KILL_AFTER or not under_way:
            continue
        for number in _owners(home, runs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                killed.set()
                return


def _owners(home: Home, runs: Path) -> list[int]:
    """The processes that run trials, or train for the study's own process."""
    found = []
    for file in runs.glob("*/trials/*.json"):
        with contextlib.suppress(OSError, ValueError):
            owner = ProcessIdentity.parse(json.loads(file.read_text()).get("process", ""))
            if owner is not None and owner.lives():
                found.append(owner.number)
    if list(runs.glob("*/trials")):
        return found
    for process in home.processes():
        with contextlib.suppress(psutil.Error):
            if "torchyard.pipelines.worker.serve" in process.cmdline():
                found.append(process.pid)
    return found[-1:]  # the first one has prepared the data, and may wait


def _read(home: Home, name: str, trials: int, seconds: float, killed: bool) -> Ended:
    """What MLflow has of a study."""
    time.sleep(1)  # what is sent last
    with home.database() as store:
        rows = store.execute(
            "select r.run_uuid, r.status, t.value from runs r "
            "join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId' "
            "join tags t on t.run_uuid = r.run_uuid and t.key = 'torchyard.trial' "
            "where p.value = (select run_uuid from tags where key = 'torchyard.study' "
            "and value = ?)",
            [name],
        ).fetchall()
        digests = dict(
            store.execute("select run_uuid, value from tags where key = 'weights_digest'")
        )
        points = store.execute("select run_uuid, step from metrics where key = 'val/loss'")
        epochs = Counter(points.fetchall())
    complete = {int(number) for _, status, number in rows if status == "FINISHED"}
    failed = {int(number) for _, status, number in rows if status == "FAILED"}
    twice = sum(count - 1 for count in epochs.values())
    return Ended(
        seconds,
        trials,
        len(complete),
        len(failed),
        trials - len(complete | failed),
        len(rows) - len({number for *_, number in rows}) + twice,
        killed,
        {int(number): digests.get(run, "") for run, _, number in rows},
    )
