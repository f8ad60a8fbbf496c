"""How fast LeNet is trained on CIFAR-10's images, by ours and by the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.bench import Bench, Run, images_of
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import Home

TITLE = (
    "Training throughput: LeNet on CIFAR-10's images, all of `fit()` with progress and metrics on"
)
OURS, STEPS, TUTORIAL = "torchyard", "torchyard, steps alone", "tutorial's loop"
LOOPS = {
    "bare loop": "bare_loop",
    "Lightning": "lightning_loop",
    "accelerate": "accelerate_loop",
    "fastai": "fastai_loop",
}
# Batch size, our epochs of 50,000 images, the peers' images, and what is to be reached
# against the tutorial's loop and against the best of the others.
CASES = ((4, 1, 6_000, 5, 1.5), (128, 3, 24_000, 3, 1.2), (512, 3, 24_000, 3, 1.2))


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """A table for each batch size."""
    tables, notes = [], []
    with bench.home("throughput") as home, bench.home("peers") as peers:
        home.torchyard("inspect", "image_folder", f"path={bench.training_archive}")
        for batch_size, epochs, images, to_tutorial, to_best in CASES:
            bench.say(f"batch {batch_size}")
            overrides = [f"train.batch_size={batch_size}", f"train.epochs={epochs}"]
            first, runs, found = compare(bench, home, peers, overrides, batch_size, images)
            targets = (
                Target(
                    f"batch {batch_size}: ≥ {to_tutorial} × the tutorial",
                    OURS,
                    to_tutorial,
                    True,
                    (TUTORIAL,),
                ),
                Target(
                    f"batch {batch_size}: ≥ {to_best} × the best of the others",
                    OURS,
                    to_best,
                    True,
                    tuple(LOOPS),
                ),
            )
            tables.append(table(f"Batch {batch_size}", found, targets))
            notes.append(f"Batch {batch_size}: " + lengths(first, runs, images))
    notes.append(
        "No import counts, for nobody. Ours is the whole train stage of `torchyard run`, with "
        "Prefect and MLflow: building the network, compiling it where that is done, steps, "
        "checkpoints. The peers' is their fit call or loop."
    )
    notes.append(
        "The peers hold normalized tensors in memory (`num_workers=0`); the tutorial's loop has "
        "PIL images and two workers. Lightning's checkpoint and progress bar, fastai's "
        "progress bar and metric are on, as by default."
    )
    return tables, notes


def compare(
    bench: Bench,
    home: Home,
    peers: Home,
    overrides: Sequence[str],
    batch_size: int,
    images: int,
    network: str = "lenet",
    loops: Mapping[str, str] = {TUTORIAL: "tutorial_loop", **LOOPS},
) -> tuple[Run, list[Run], dict[str, list[float]]]:
    """Ours and each loop, alternating; gives our first run, the others, and images/s of all."""
    count = bench.images(images)
    command = [
        "cifar10",
        *images_of(bench.training_archive),
        f"model={network}",
        "train.log_every=100",
        *overrides,
        "--json",
    ]
    runs: list[Run] = []

    def ours() -> float:
        runs.append(Run.of(home.torchyard("run", *command)))
        home.settle()
        return runs[-1].images / runs[-1].stages["train"]

    def peer(loop: str) -> float:
        options = ["--network", network, "--batch-size", batch_size, "--images", count]
        return float(bench.peer(peers, loop, *options)["images_per_second"])

    bench.say(f"first run, with nothing compiled: {ours():,.0f} images/s")
    contenders: dict[str, Callable[[], float]] = {OURS: ours}
    contenders |= {name: partial(peer, loop) for name, loop in loops.items()}
    found = alternate(bench.rounds(3), contenders, bench.say)
    found[STEPS] = [run.images / run.steps_seconds for run in runs[1:]]
    return runs[0], runs[1:], found


def table(
    caption: str, found: Mapping[str, list[float]], targets: tuple[Target, ...]
) -> Comparison:
    """Images per second, ours first."""
    order = [OURS, STEPS, *(name for name in found if name not in (OURS, STEPS))]
    series = tuple(Series(name, tuple(found[name])) for name in order)
    return Comparison(f"{caption}, images per second", "images/s", True, series, targets)


def lengths(first: Run, runs: Sequence[Run], images: int) -> str:
    """What was trained, and what our train stage spent beside steps."""
    beside = sorted(run.stages["train"] - run.steps_seconds for run in runs)[len(runs) // 2]
    cold = first.stages["train"]
    return (
        f"ours trained {first.images:,} images, the peers {images:,}. Of our stage {beside:.1f} s "
        f"were not steps. The very first run, nothing compiled before, is in no median: "
        f"{first.images / cold:,.0f} images/s, {cold - first.steps_seconds:.1f} s not in steps."
    )
