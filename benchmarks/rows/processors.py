"""What is left of LeNet's training where others want the processors, too."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import OURS as PYTHON
from benchmarks.home import ROOT, Home
from torchyard.pipelines.worker.process import MEMORY, SPINS

TITLE = "Shared processors: LeNet at batch 64"
OURS, OPENMP, PASSIVE, ONE = "torchyard", "OpenMP's default", "passive waiting", "one thread"
SETTINGS: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    OURS: (SPINS, ()),
    OPENMP: ({}, ()),
    PASSIVE: ({"OMP_WAIT_POLICY": "PASSIVE"}, ()),
    ONE: ({}, ("train.threads=1",)),
}
# Further counts to try, separated by commas.
if tried := os.environ.get("SPINS"):
    SETTINGS |= {f"{spins} spins": ({"GOMP_SPINCOUNT": spins}, ()) for spins in tried.split(",")}
SECONDS = 3.0
BUSY = 8
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """A table for training alone, beside busy processes, and two at once."""
    seconds = SECONDS / 10 if bench.quick else SECONDS
    situations: dict[str, Callable[[list[subprocess.Popen[str]]], float]] = {
        "alone": lambda pair: _speed(pair[:1], seconds),
        "beside": lambda pair: _beside_busy(pair[:1], seconds),
        "two": lambda pair: _speed(pair, seconds),
    }
    with bench.home("processors") as home, contextlib.ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(_training(home, *setting)) for _ in range(2)]
            for name, setting in SETTINGS.items()
        }
        for process in (each for pair in pairs.values() for each in pair):
            _line(process)  # it has begun
        found = {}
        for situation, speed in situations.items():
            bench.say(situation)
            contenders = {name: partial(speed, pair) for name, pair in pairs.items()}
            found[situation] = alternate(bench.rounds(5), contenders, bench.say)
    alone = [max(row) for row in zip(*(found["alone"][name] for name in SETTINGS), strict=True)]
    share = os.cpu_count() or 1
    fair = share / (share + BUSY)
    tables = [
        Comparison(
            "Alone, images per second",
            "images/s",
            True,
            _series(found["alone"]),
            (Target("alone: ≥ 0.85 × OpenMP's default", OURS, 0.85, True, (OPENMP,)),),
        ),
        Comparison(
            f"Beside {BUSY} busy processes, share of what is fair",
            f"of {fair:.2f} × the best alone",
            True,
            _series({name: _over(found["beside"][name], alone, fair) for name in SETTINGS}),
            (Target("beside busy processes: ≥ 0.5 of the fair share", OURS, 0.5, True),),
        ),
        Comparison(
            "Two at once, both together",
            "× the best alone",
            True,
            _series({name: _over(found["two"][name], alone, 1.0) for name in SETTINGS}),
            (Target("two at once: each ≥ 0.8 of a half", OURS, 0.8, True),),
        ),
    ]
    return tables, [
        f"Each process trains for {seconds:g} s, made before; a busy process is a loop that does "
        "nothing. What is fair is the share that as many processes as the machine has processors "
        f"get beside {BUSY} others. Every process is in a session of its own, as a worker is."
    ]


@contextlib.contextmanager
def _training(
    home: Home, variables: Mapping[str, str], overrides: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in home.environment.items() if name not in WAITING}
    process = subprocess.Popen(
        [str(PYTHON), "-m", "benchmarks.own.steps", "train.batch_size=64", *overrides],
        cwd=home.work,
        env={**kept, **MEMORY, **variables, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _speed(trainings: list[subprocess.Popen[str]], seconds: float) -> float:
    for training in trainings:
        assert training.stdin is not None
        training.stdin.write(f"{seconds}\n")
        training.stdin.flush()
    return sum(float(_line(training)) for training in trainings)


def _beside_busy(trainings: list[subprocess.Popen[str]], seconds: float) -> float:
    busy = [
        subprocess.Popen([str(PYTHON), "-S", "-c", "while True: pass"], start_new_session=True)
        for _ in range(BUSY)
    ]
    try:
        return _speed(trainings, seconds)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _over(values: list[float], alone: list[float], part: float) -> list[float]:
    return [value / (part * best) for value, best in zip(values, alone, strict=True)]


def _series(found: Mapping[str, list[float]]) -> tuple[Series, ...]:
    return tuple(Series(name, tuple(values)) for name, values in found.items())
