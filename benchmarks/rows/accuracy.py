"""What accuracy the preset cifar10-fast reaches while the tutorial's loop trains its two epochs."""

from __future__ import annotations

from benchmarks.bench import Bench, Run, Skipped, images_of
from benchmarks.comparison import Comparison, Series, Target
from benchmarks.home import BenchmarkError, Home

TITLE = "Accuracy in the tutorial's time: preset `cifar10-fast`, three seeds"
PRESET, SEEDS = "cifar10-fast", (0, 1, 2)
SHORTENED = ("train.batch_size=128", "train.max_steps=57")
TUTORIAL, WHOLE, TRAINING = "tutorial's loop, training alone", "whole process", "its train stage"
SHORT, SHORT_TRAINING = "short form, whole process", "its train stage, short"


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """The preset three times, its short form three times, and the tutorial's loop once between."""
    with bench.home("fast") as home, bench.home("tutorial") as peers:
        try:
            home.torchyard("check", PRESET, *images_of(bench.archive))
        except BenchmarkError as error:
            raise Skipped(f"there is no preset {PRESET} yet: {error}") from error
        home.torchyard("inspect", "image_folder", f"path={bench.archive}")
        long: list[Run] = []
        short: list[Run] = []
        tutorial: dict[str, float] = {}
        for seed in SEEDS[: bench.rounds(len(SEEDS))]:
            long.append(_run(bench, home, seed))
            bench.say(f"seed {seed}: {long[-1].accuracy:.2%} in {long[-1].seconds:.1f} s")
            short.append(_run(bench, home, seed, *SHORTENED))
            bench.say(f"seed {seed}: {short[-1].accuracy:.2%} in {short[-1].seconds:.1f} s")
            if not tutorial:
                images = bench.images(50_000)
                (tutorial,) = bench.peer(
                    peers, "tutorial_loop", "--test", "--epochs", 2, "--images", images
                )
                bench.say(f"tutorial: {tutorial['accuracy']:.2%} in {tutorial['seconds']:.1f} s")
    taken = Series(TUTORIAL, (tutorial["seconds"],) * len(long))
    accuracies = Comparison(
        "Test accuracy",
        "%",
        True,
        (
            Series(PRESET, tuple(100 * run.accuracy for run in long)),
            Series(SHORT, tuple(100 * run.accuracy for run in short)),
            Series("tutorial's loop", (100 * tutorial["accuracy"],)),
        ),
        (
            Target("≥ 82 %, median of three seeds", PRESET, 82, True),
            Target("≥ 86 %, median of three seeds", PRESET, 86, True),
            Target("≥ 53 % in a tenth of the time", SHORT, 53, True),
        ),
    )
    times = Comparison(
        "Seconds",
        "seconds",
        False,
        (
            Series(WHOLE, tuple(run.seconds for run in long)),
            Series(TRAINING, tuple(run.stages["train"] for run in long)),
            Series(SHORT, tuple(run.seconds for run in short)),
            Series(SHORT_TRAINING, tuple(run.stages["train"] for run in short)),
            taken,
        ),
        (
            Target("whole process within the tutorial's time", WHOLE, 1.0, False, (TUTORIAL,)),
            Target(
                "short form: training within a tenth of it", SHORT_TRAINING, 0.1, False, (TUTORIAL,)
            ),
            Target("short form: whole process within a tenth", SHORT, 0.1, False, (TUTORIAL,)),
        ),
    )
    notes = [
        "The data are prepared before, for both. The whole process has imports, evaluation "
        "and report; the tutorial's seconds are those of its training alone, two epochs at "
        "batch 4, once.",
        f"The short form is `torchyard run {PRESET} {' '.join(SHORTENED)}`.",
    ]
    return [accuracies, times], notes


def _run(bench: Bench, home: Home, seed: int, *overrides: str) -> Run:
    command = ["run", PRESET, *images_of(bench.archive), f"train.seed={seed}", *overrides]
    ended = home.torchyard(*command, "--json")
    home.settle()
    return Run.of(ended)
