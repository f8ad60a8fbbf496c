"""What trials, workers and runs cost as there are more of them."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from statistics import median

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Result, Series, Target, alternate
from benchmarks.home import Home

TITLE = "Studies and stores as they grow"
TRIALS, QUICK_TRIALS = (1, 10, 100, 300), (1, 4)
RUNS, QUICK_RUNS = (10, 100, 1_000, 10_000), (10, 100)
TOLD, QUICK_TOLD = (10, 100, 1_000), (10, 20)
TOGETHER = 60  # trials, with one worker and with two
WORK = ("digits", "model=linear", "optimizer=sgd", "optimizer.lr=log(1e-3,1)", "train.epochs=1")
OVERHEAD = "Seconds a trial beyond its training, from the second on"
COMMANDS = {
    "runs": ("runs",),
    "runs --sort accuracy": ("runs", "--sort", "accuracy"),
    "runs 'train.epochs>=1'": ("runs", "train.epochs>=1"),
}
LISTING = "Seconds of `torchyard {}`"
REQUEST = "One request to MLflow's server"
OPTUNA = "Optuna's part of a trial"


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Trials of one worker, workers, listing, and what one process does for all."""
    overhead: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for trials in QUICK_TRIALS if bench.quick else TRIALS:
        with bench.home(f"trials-{trials}") as home:
            _prepare(home)
            seconds[f"{trials}"] = _study(home, trials, 1)
            if trials > 1:
                overhead[f"{trials}"] = _overhead(home)
        bench.say(f"{trials} trials: {seconds[f'{trials}']:.1f} s")
    together = QUICK_TRIALS[-1] if bench.quick else TOGETHER
    workers: dict[str, float] = {}
    for count in (1, 2):
        with bench.home(f"workers-{count}") as home:
            _prepare(home)
            workers[f"{count}"] = _study(home, together, count)
        bench.say(f"{count} workers: {workers[f'{count}']:.1f} s")
    listings, request = _listings(bench)
    with bench.home("optuna") as home:
        asked = {
            f"{sampler}, {told:,} told": float(home.script("own.scaling", sampler, told)["seconds"])
            for sampler in ("random", "tpe")
            for told in (QUICK_TOLD if bench.quick else TOLD)
        }
    most = max(overhead, key=int)
    limits = (Target(f"{most} trials: ≤ 1.0 s each", most, 1.0, False),)
    return [
        _table(OVERHEAD, overhead, limits),
        _table("Seconds of a study's whole command, by trials", seconds),
        _table(f"Seconds of {together} trials, by workers", workers),
        *listings,
        _table(REQUEST, {"set_tag": request}),
        _table(OPTUNA, asked),
    ], [
        f"Trials: `torchyard sweep {' '.join(WORK)} --sampler random`, data prepared before. "
        "Beyond the training: from one trial's end in MLflow to the next one's, less the seconds "
        "of its steps; the median.",
        "Listing: a store in SQLite with copies of a run of the digits, in whole processes.",
        "The request is the one that every run makes every five seconds, to the server of "
        "`torchyard up` on SQLite. Optuna's: ask, draw two values and tell, the last ten trials.",
    ]


def _table(
    caption: str, values: Mapping[str, float], targets: tuple[Target, ...] = ()
) -> Comparison:
    series = tuple(Series(name, (value,)) for name, value in values.items())
    return Comparison(caption, "seconds", False, series, targets)


def _prepare(home: Home) -> None:
    home.torchyard("run", *WORK[:3], "train.epochs=1", "--quiet")
    home.settle()


def _study(home: Home, trials: int, workers: int) -> float:
    options = ("--trials", str(trials), "--workers", str(workers), "--sampler", "random")
    return home.torchyard("sweep", *WORK, "--name", "scale", *options).seconds


def _overhead(home: Home) -> float:
    """Seconds between the ends of two trials, less those in training steps; the median."""
    with home.database() as store:
        ends = store.execute(
            "select r.end_time / 1000.0, m.value from runs r "
            "join tags t on t.run_uuid = r.run_uuid and t.key = 'torchyard.trial' "
            "join latest_metrics m on m.run_uuid = r.run_uuid and m.key = 'train/epoch_seconds' "
            "order by r.end_time"
        ).fetchall()
    apart = (end - before - steps for (before, _), (end, steps) in itertools.pairwise(ends))
    return float(median(apart))


def _seconds(home: Home, arguments: tuple[str, ...]) -> float:
    return home.torchyard(*arguments).seconds


def _listings(bench: Bench) -> tuple[list[Comparison], float]:
    """Listing of a store with more and more runs, and a request to its server."""
    counts = QUICK_RUNS if bench.quick else RUNS
    found: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in COMMANDS}
    with bench.home("listing") as home:
        _prepare(home)
        database = home.work / "mlruns" / "mlflow.db"
        for count in counts:
            home.script("own.scaling", "fill", database, count)
            contenders = {
                name: functools.partial(_seconds, home, arguments)
                for name, arguments in COMMANDS.items()
            }
            measured = alternate(bench.rounds(3), contenders, bench.say)
            for name, values in measured.items():
                found[name][f"{count:,} runs"] = tuple(values)
        home.torchyard("up")
        try:
            told = json.loads(home.torchyard("status", "--json").output)["services"]
            [address] = [each["address"] for each in told if each["name"] == "MLflow"]
            request = float(home.script("own.scaling", "requests", address)["seconds"])
        finally:
            home.torchyard("down")
    tables = [
        Comparison(
            LISTING.format(name),
            "seconds",
            False,
            tuple(Series(count, values) for count, values in each.items()),
        )
        for name, each in found.items()
    ]
    return tables, request


FIRST, LAST = "<!-- measured: written by `make bench ROWS=scale` -->", "<!-- end -->"
GPUS, STORED, RENEWED = 1_000, 100_000, 5.0  # machines, runs, seconds between two renewals


def arithmetic(result: Result) -> list[str]:
    """The table of docs/scale.md: what was measured, and what that comes to."""
    tables = {table.caption: table for table in result.comparisons}

    def value(caption: str, name: str) -> float:
        return median(tables[caption].named(name).values)

    def last(caption: str) -> tuple[str, float]:
        series = tables[caption].series[-1]
        return series.name, median(series.values)

    trials, overhead = last(OVERHEAD)
    listing = LISTING.format("runs --sort accuracy")
    (fewest, quick), (most, slow) = (
        (each.name, median(each.values))
        for each in (tables[listing].series[0], tables[listing].series[-1])
    )
    each_run = (slow - quick) / (_count(most) - _count(fewest))
    request = value(REQUEST, "set_tag")
    told, tpe = last(OPTUNA)
    return [
        "| what | measured | at 1,000 GPUs and 100,000 runs |",
        "|---|---|---|",
        f"| a trial beyond its training | {overhead:.2f} s ({trials} trials) | one process that "
        f"runs them after one another: {STORED * overhead / 3600:,.0f} h of {STORED:,} trials; "
        f"1,000 workers: {STORED * overhead / GPUS:,.0f} s each |",
        f"| a request to MLflow's server | {1000 * request:.1f} ms | leases alone are "
        f"{GPUS / RENEWED:,.0f} requests a second, {GPUS / RENEWED * request:.1f} × what one "
        "process answers |",
        f"| Optuna's part of a trial | {1000 * tpe:.0f} ms ({told}) | if it grows with the trials: "
        f"{tpe * STORED / _count(told.split(', ')[1]):.1f} s a trial behind {STORED:,} |",
        f"| `torchyard runs --sort accuracy` | {quick:.1f} s of {fewest}, {slow:.1f} s of {most} | "
        f"{slow + each_run * (STORED - _count(most)):.1f} s |",
    ]


def _count(name: str) -> int:
    return int(name.split()[0].replace(",", ""))
