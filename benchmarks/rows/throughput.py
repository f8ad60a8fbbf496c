"""How fast LeNet is trained on CIFAR-10's images, by ours and by the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.bench import Bench, Run, images_of
from benchmarks.comparison import Comparison, Series, Target, alternate

TITLE = "Training throughput: LeNet on CIFAR-10's images, all of `fit()`, progress and metrics on"
PLAIN = "torchyard, float32, nothing compiled"
OURS, STEPS, TUTORIAL = "torchyard", "torchyard, steps alone", "tutorial's loop"
LOOPS = {
    "bare loop": "bare_loop",
    "Lightning": "lightning_loop",
    "accelerate": "accelerate_loop",
    "fastai": "fastai_loop",
}


@dataclass
class Case:
    """One batch size.

    Attributes:
        length: how long ours trains, as a setting of the run.
        images: on how many the peers train.
        plain_steps: of the run whose arithmetic is the peers', if it ends within an epoch.
        runs: ours; the first one, with nothing compiled, is in no median.
    """

    batch_size: int
    length: str
    images: int
    targets: tuple[Target, ...]
    plain_steps: int | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What was trained, and what our train stage spent beside steps."""
        first, *others = self.runs
        beside = sorted(run.stages["train"] - run.steps_seconds for run in others)
        return (
            f"Batch {self.batch_size}: ours trained {first.images:,} images, the peers "
            f"{self.images:,}. Of our stage {beside[len(beside) // 2]:.1f} s were not steps. The "
            f"very first run, nothing compiled before: {_speed(first):,.0f} images/s, "
            f"{first.stages['train'] - first.steps_seconds:.1f} s not in steps."
        )


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """A table for each batch size."""
    loops = {TUTORIAL: "tutorial_loop", **LOOPS}
    # Long enough for ours to compile by itself.
    small = [_case(4, 4, bench.images(6_000), 5, 1.5)]
    large = [_case(size, 5, bench.images(40_000), 3, 1.2) for size in (128, 512)]
    tables = compare(bench, small, "lenet", loops, 3) + compare(bench, large, "lenet", loops, 3)
    cases = small + large
    notes = [
        *(case.note for case in cases),
        "No import counts, for nobody. Ours is the whole train stage of `torchyard run`, with "
        "Prefect and MLflow: building the network, compiling it where that is done, steps, "
        "checkpoints. The peers' is their fit call or loop.",
        "Of ours nothing is set: at 128 and 512 it chooses channels last, and bfloat16 where the "
        "processor is faster with it; it compiles at 4, for the run is long enough. One line of a "
        "table is without any of that; the peers compute in float32, their default.",
        "The peers hold normalized tensors in memory (`num_workers=0`); the tutorial's loop has "
        "PIL images and two workers. Lightning's checkpoint and progress bar, fastai's progress "
        "bar and metric are on, as by default. A process of theirs trains all batch sizes, one "
        "after another.",
    ]
    return tables, notes


def compare(
    bench: Bench, cases: Sequence[Case], network: str, loops: Mapping[str, str], rounds: int
) -> list[Comparison]:
    """Ours and each loop, alternating: a table of images per second for each case."""
    source = bench.training_archive
    with bench.home("ours") as home, bench.home("peers") as peers:
        home.torchyard("inspect", "image_folder", f"path={source}")
        options = ["--network", network]
        options += ["--batch-size", *(str(case.batch_size) for case in cases)]
        options += ["--images", *(str(case.images) for case in cases)]

        def ours() -> list[float]:
            for case in cases:
                settings = [f"train.batch_size={case.batch_size}", case.length]
                settings += [f"model={network}", "train.log_every=100"]
                ended = home.torchyard("run", "cifar10", *images_of(source), *settings, "--json")
                case.runs.append(Run.of(ended))
                home.settle()
            return [_speed(case.runs[-1]) for case in cases]

        def peer(loop: str) -> list[float]:
            return [job["images_per_second"] for job in bench.peer(peers, loop, *options)]

        def plain() -> list[float]:
            speeds = []
            for case in cases:
                settings = [f"train.batch_size={case.batch_size}", "train.epochs=1"]
                settings += [f"train.max_steps={case.plain_steps}"] * bool(case.plain_steps)
                settings += [f"model={network}", "precision=float32", "train.compile=false"]
                settings += ["train.channels_last=false"]
                ended = home.torchyard("run", "cifar10", *images_of(source), *settings, "--json")
                speeds.append(_speed(Run.of(ended)))
                home.settle()
            return speeds

        contenders: dict[str, Callable[[], list[float]]] = {OURS: ours, PLAIN: plain}
        contenders |= {name: partial(peer, loop) for name, loop in loops.items()}
        alternate(1, {OURS: ours}, lambda text: bench.say(f"nothing compiled, {text}"))
        found = alternate(bench.rounds(rounds), contenders, bench.say)
    tables = []
    for number, case in enumerate(cases):
        steps = tuple(run.images / run.steps_seconds for run in case.runs[1:])
        series = [Series(name, tuple(row[number] for row in found[name])) for name in found]
        series.insert(1, Series(STEPS, steps))
        caption = f"Batch {case.batch_size}, images per second"
        tables.append(Comparison(caption, "images/s", True, tuple(series), case.targets))
    return tables


def _case(batch_size: int, epochs: int, images: int, to_tutorial: float, to_best: float) -> Case:
    said = f"batch {batch_size}: ≥"
    targets = (
        Target(f"{said} {to_tutorial} × the tutorial", OURS, to_tutorial, True, (TUTORIAL,)),
        Target(f"{said} {to_best} × the best of the others", OURS, to_best, True, tuple(LOOPS)),
    )
    return Case(batch_size, f"train.epochs={epochs}", images, targets)


def _speed(run: Run) -> float:
    return run.images / run.stages["train"]
