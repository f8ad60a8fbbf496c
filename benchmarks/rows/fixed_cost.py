"""What orchestration and tracking cost a short job: the digits, five epochs of LeNet."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import OURS, ROOT, BenchmarkError, Home

TITLE = "Fixed cost: whole process of the digits job (LeNet, 5 epochs, batch 32)"
PEERS = ROOT / "benchmarks" / "peers"
COLD, FIRST, UP = "torchyard run digits", "its very first run", "with `torchyard up` running"
SCHEDULED = "from its time to the first step"
INTERVAL = 20  # seconds between two scheduled runs
BARE, NAIVE = "bare torch script", "Prefect + MLflow at defaults"


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Cold and first runs beside the scripts; then runs beside services that are up."""
    with bench.home("cold") as home, bench.home("scripts") as scripts:

        def bare() -> float:
            return scripts.run(str(OURS), str(PEERS / "digits_bare.py")).seconds

        def naive() -> float:  # in our home, where the databases are
            seconds = home.run(str(OURS), str(PEERS / "digits_naive.py")).seconds
            home.settle()
            return seconds

        def first() -> float:
            with bench.home("first") as empty:
                return _run(empty)

        bare()
        bench.say(f"warm-up: makes the databases, {_run(home):.1f} s")
        cold = {COLD: lambda: _run(home), BARE: bare}
        found = alternate(bench.rounds(3), cold | {FIRST: first}, bench.say)
        for name, values in alternate(bench.rounds(2), cold, bench.say).items():
            found[name] += values
        found |= alternate(1, {NAIVE: naive}, bench.say)

        home.torchyard("up")
        try:
            _wait_for_standby(home)
            _run(home, settle=False)
            beside = alternate(
                bench.rounds(3), {UP: lambda: _run(home, settle=False), BARE: bare}, bench.say
            )
            scheduled = _scheduled(home, 5, bench.say)
        finally:
            home.torchyard("down")
        home.settle()
    tables = [
        _table(
            "Cold: no server is up",
            found,
            Target("cold ≤ 1.25 × the bare script", COLD, 1.25, False, (BARE,)),
            Target("cold ≤ 1.0 × the bare script", COLD, 1.0, False, (BARE,)),
            Target("very first run ≤ 1.6 × the bare script", FIRST, 1.6, False, (BARE,)),
        ),
        _table(
            "With `torchyard up` running",
            beside,
            Target("with `up` running ≤ 0.4 × the bare script", UP, 0.4, False, (BARE,)),
        ),
        _table(
            "A scheduled run",
            {SCHEDULED: scheduled},
            Target("a scheduled run's first step ≤ 2 s after its time", SCHEDULED, 2, False),
        ),
    ]
    notes = [
        "Every run waits until the one before has ended with its server.",
        "The very first run has an empty home folder: neither databases nor any cache.",
        f"Scheduled runs begin every {INTERVAL} s, with nothing beside them. How long one waits "
        "for its time, Prefect's server rounds to whole seconds.",
        "Prefect + MLflow at their defaults is one run, with its databases there; no target holds "
        "against it.",
    ]
    return tables, notes


def _run(home: Home, settle: bool = True) -> float:
    seconds = home.torchyard("run", "digits", "--quiet").seconds
    if settle:
        home.settle()
    return seconds


def _scheduled(home: Home, count: int, say: Callable[[str], None]) -> list[float]:
    """Seconds from the time of each of several scheduled runs to the end of its first step."""
    every = ("--interval", f"{INTERVAL}s", "--name", "often")
    home.torchyard("schedule", "digits", "train.log_every=1", *every)
    prefect = f"file:{home.folder / 'prefect' / 'prefect.db'}?mode=ro"
    started = (
        "select id, expected_start_time from flow_run where state_type = 'COMPLETED' "
        "and deployment_id is not null order by expected_start_time limit ?"
    )
    end = time.monotonic() + INTERVAL * (2 * count + 3)  # a busy machine may skip every second one
    found: list[tuple[str, str]] = []
    while len(found) < count:
        if time.monotonic() > end:
            raise BenchmarkError(f"{len(found)} of {count} scheduled runs have ended in time")
        time.sleep(1)
        with contextlib.closing(sqlite3.connect(prefect, uri=True)) as database:
            found = database.execute(started, [count]).fetchall()
    home.torchyard("unschedule", "often")
    first = (
        "select min(m.timestamp) from metrics m join tags t on t.run_uuid = m.run_uuid "
        "where t.key = 'prefect.flow_run_id' and t.value = ? and m.step = 1"
    )
    seconds = []
    for identity, text in found:
        time_of = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        with home.database() as database:
            [milliseconds] = database.execute(first, [str(UUID(identity))]).fetchone()
        seconds.append(milliseconds / 1000 - time_of)
        say(f"{SCHEDULED}: {seconds[-1]:.2f} s")
    return seconds


def _wait_for_standby(home: Home) -> None:
    """Wait until runs begin in a process that is ready for them."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        services = json.loads(home.torchyard("status", "--json").output)["services"]
        if any(each["name"] == "standby" and each["state"] == "up" for each in services):
            return
        time.sleep(0.5)
    raise BenchmarkError("no standby came up within 120 s")


def _table(caption: str, found: dict[str, list[float]], *targets: Target) -> Comparison:
    series = tuple(Series(name, tuple(values)) for name, values in found.items())
    return Comparison(caption, "seconds", False, series, targets)
