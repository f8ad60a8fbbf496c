"""What being told of a training costs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.bench import Bench, Run, images_of
from benchmarks.comparison import Comparison, Series, Target, alternate

TITLE = "Logging: everything on against everything off"
ON, OFF = "torchyard, everything on", "torchyard, everything off"
THEIR_ON, THEIR_OFF = "Lightning + MLflow logger", "Lightning, everything off"
BATCH_SIZE, EPOCHS, EVERY = 128, 10, 50


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Seconds of training with and without, ours and Lightning's."""
    stages: dict[str, list[float]] = {ON: [], OFF: []}
    with bench.home("logging") as home, bench.home("peers") as peers:
        source = bench.training_archive
        home.torchyard("inspect", "image_folder", f"path={source}")
        work = [*images_of(source), f"train.epochs={EPOCHS}", f"train.batch_size={BATCH_SIZE}"]

        def on() -> float:
            told = [f"train.log_every={EVERY}", "train.log_gradients=true", "--json"]
            run = Run.of(home.torchyard("run", "cifar10", *work, *told))
            home.settle()
            stages[ON].append(run.stages["train"])
            return run.steps_seconds

        def off() -> float:
            quiet = "train.log_every=1000000"
            found = home.script("own.training", "cifar10", home.cache, *work, quiet)
            stages[OFF].append(found["seconds"])
            return float(found["steps_seconds"])

        def lightning(option: str) -> float:
            length = ["--batch-size", BATCH_SIZE, "--images", bench.images(24_000)]
            (found,) = bench.peer(peers, "lightning_loop", *length, option)
            return float(found["seconds"])

        on()  # makes the databases
        stages[ON].clear()
        ours = alternate(bench.rounds(5), {ON: on, OFF: off}, bench.say)
        theirs = alternate(
            bench.rounds(3),
            {THEIR_ON: lambda: lightning("--tracked"), THEIR_OFF: lambda: lightning("--bare")},
            bench.say,
        )
    tables = [
        _table(
            "Training steps, ours",
            ours,
            Target("everything on costs ≤ 1 % of the training", ON, 1.01, False, (OFF,)),
        ),
        _table("The whole train stage, ours", stages),
        _table("Lightning's fit", theirs),
    ]
    notes = [
        f"LeNet, batch {BATCH_SIZE}. On: `torchyard run`, a running loss and the norm of each "
        f"layer's gradient every {EVERY} batches, log, MLflow, Prefect, progress. Off: the "
        "stage alone in a process of its own, its events told to nobody, one loss an epoch.",
        f"Lightning on: a loss every {EVERY} batches, its default, to its MLflow logger (SQLite), "
        "and its bar. Off: neither logger nor bar. Both without checkpoints.",
    ]
    return tables, notes


def _table(caption: str, found: Mapping[str, Sequence[float]], *targets: Target) -> Comparison:
    series = tuple(Series(name, tuple(values)) for name, values in found.items())
    return Comparison(caption, "seconds", False, series, targets)
