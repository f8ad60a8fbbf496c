"""What is left of LeNet's training where others want the processors, too."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TypeAlias

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import OURS as PYTHON
from benchmarks.home import ROOT, Home
from torchyard.pipelines.worker.process import MEMORY, SPINS

# `SPINS=500,3000 python -m benchmarks.run processors` tries other counts beside the one in
# `process.py` that decides.
TITLE = "Shared processors: LeNet at batch 64"
OURS, OPENMP, PASSIVE, ONE = "torchyard", "OpenMP's default", "passive waiting", "one thread"
LOOPS = "loops that never wait"
SETTINGS: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    OURS: (SPINS, ()),
    OPENMP: ({}, ()),
    PASSIVE: ({"OMP_WAIT_POLICY": "PASSIVE"}, ()),
    ONE: ({}, ("train.threads=1",)),
}
if tried := os.environ.get("SPINS"):
    SETTINGS |= {f"{spins} spins": ({"GOMP_SPINCOUNT": spins}, ()) for spins in tried.split(",")}
# On both sides of where a second thread is taken, 30 million operations a batch forward.
BELOW, ABOVE = 16, 32
SECONDS = 2.0
BUSY = 8
# So many processes for so many seconds; prints the processors' time that they got.
LOOPING = """
import os, sys, time
end = time.monotonic() + float(sys.argv[2])
children = []
for _ in range(int(sys.argv[1]) - 1):
    children.append(os.fork())
    if not children[-1]:
        break
while time.monotonic() < end:
    pass
if all(children):
    for child in children:
        os.waitpid(child, 0)
    print(sum(os.times()[:4]))
"""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
Training: TypeAlias = subprocess.Popen[str]


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Tables for training alone, beside busy processes, two at once; and for small batches."""
    seconds = SECONDS / 10 if bench.quick else SECONDS
    with bench.home("processors") as home:
        tables = [*_waiting(bench, home, seconds), *_threads(bench, home, seconds)]
    return tables, [
        f"Each process trains for {seconds:g} s, made before; a busy process is a loop that does "
        "nothing. What is fair is the share that as many processes as the machine has processors "
        f"get beside {BUSY} others. Every process is in a session of its own, as a worker is; "
        f'Linux may divide the processors by sessions first: "{LOOPS}" is what a session of as '
        "many busy processes as there are processors got, the most that a training can."
    ]


def _waiting(bench: Bench, home: Home, seconds: float) -> Iterator[Comparison]:
    with contextlib.ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(_training(home, 64, *setting)) for _ in range(2)]
            for name, setting in SETTINGS.items()
        }
        for training in (each for pair in pairs.values() for each in pair):
            _line(training)  # it has begun
        # In the same rounds, for a machine's speed drifts.
        bench.say("alone, and two at once")
        unhindered = {name: partial(_speed, pair[:1], seconds) for name, pair in pairs.items()}
        together = {_two(name): partial(_speed, pair, seconds) for name, pair in pairs.items()}
        found = alternate(bench.rounds(5), {**unhindered, **together}, bench.say)
        bench.say("beside")
        hindered = {name: partial(_beside_busy, pair[:1], seconds) for name, pair in pairs.items()}
        loops = {LOOPS: partial(_loops_beside_busy, seconds)}
        beside = alternate(bench.rounds(5), {**hindered, **loops}, bench.say)
    alone = {name: found[name] for name in SETTINGS}
    best = [max(row) for row in zip(*alone.values(), strict=True)]
    share = os.cpu_count() or 1
    fair = share / (share + BUSY)
    shares = [part / fair for part in beside.pop(LOOPS)]
    beside = {name: _over(values, best, fair) for name, values in beside.items()}
    both = {name: _over(found[_two(name)], best, 1.0) for name in SETTINGS}
    yield Comparison(
        "Alone, images per second",
        "images/s",
        True,
        _series(alone),
        (Target("alone: ≥ 0.85 × OpenMP's default", OURS, 0.85, True, (OPENMP,)),),
    )
    yield Comparison(
        f"Beside {BUSY} busy processes, share of what is fair",
        f"of {fair:.2f} × the best alone",
        True,
        _series({**beside, LOOPS: shares}),
        (Target("beside busy processes: ≥ 0.5 of the fair share", OURS, 0.5, True),),
    )
    yield Comparison(
        "Two at once, both together",
        "× the best alone",
        True,
        _series(both),
        tuple(
            Target(f"two at once: together ≥ {least} of one alone", OURS, least, True)
            for least in (0.8, 0.9)
        ),
    )


def _two(name: str) -> str:
    return f"two of {name}"


def _threads(bench: Bench, home: Home, seconds: float) -> Iterator[Comparison]:
    """One thread against as many as there are processors, where the choice changes."""
    for size, chosen, other in ((BELOW, ONE, "all threads"), (ABOVE, "all threads", ONE)):
        with contextlib.ExitStack() as stack:
            threads = {ONE: 1, "all threads": os.cpu_count() or 1}
            trainings = {
                name: stack.enter_context(
                    _training(home, size, SPINS, (f"train.threads={threads[name]}",))
                )
                for name in (chosen, other)
            }
            for training in trainings.values():
                _line(training)
            contenders = {
                name: partial(_speed, [training], seconds) for name, training in trainings.items()
            }
            bench.say(f"batches of {size}")
            found = alternate(bench.rounds(5), contenders, bench.say)
        yield Comparison(
            f"Alone, batches of {size}, what is chosen first",
            "images/s",
            True,
            _series(found),
            (Target(f"batch {size}: {chosen} ≥ {other}", chosen, 1.0, True, (other,)),),
        )


@contextlib.contextmanager
def _training(
    home: Home, batch: int, variables: Mapping[str, str], overrides: tuple[str, ...]
) -> Iterator[Training]:
    kept = {name: value for name, value in home.environment.items() if name not in WAITING}
    process = subprocess.Popen(
        [str(PYTHON), "-m", "benchmarks.own.steps", f"train.batch_size={batch}", *overrides],
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


def _line(process: Training) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _speed(trainings: list[Training], seconds: float) -> float:
    for training in trainings:
        assert training.stdin is not None
        training.stdin.write(f"{seconds}\n")
        training.stdin.flush()
    return sum(float(_line(training)) for training in trainings)


def _beside_busy(trainings: list[Training], seconds: float) -> float:
    with _busy():
        return _speed(trainings, seconds)


def _loops_beside_busy(seconds: float) -> float:
    """The share of all processors' time that a session of loops gets."""
    processors = os.cpu_count() or 1
    command = [str(PYTHON), "-S", "-c", LOOPING, str(processors), str(seconds)]
    with _busy():
        used = subprocess.check_output(command, text=True, start_new_session=True)
    return float(used) / (processors * seconds)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    command = [str(PYTHON), "-S", "-c", "while True: pass"]
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(BUSY)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _over(values: list[float], alone: list[float], part: float) -> list[float]:
    return [value / (part * best) for value, best in zip(values, alone, strict=True)]


def _series(found: Mapping[str, list[float]]) -> tuple[Series, ...]:
    return tuple(Series(name, tuple(values)) for name, values in found.items())
