"""From trained weights to the accuracies of the test split."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate

TITLE = "Evaluation: 10,000 images, LeNet"
OURS, TUTORIAL = "torchyard", "tutorial's loop, batch 4"


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Our stage beside the tutorial's loop."""
    with bench.home("evaluate") as home, bench.home("peers") as peers:

        def ours() -> float:
            found = home.script("own.evaluation", bench.archive, home.cache)
            return float(found["images"] / found["seconds"])

        def tutorial() -> float:
            (found,) = bench.peer(peers, "tutorial_loop", "--test", "--images", 400)
            return float(found["tested"] / found["test_seconds"])

        ours()  # prepares
        found = alternate(bench.rounds(3), {OURS: ours, TUTORIAL: tutorial}, bench.say)
    series = tuple(Series(name, tuple(values)) for name, values in found.items())
    target = Target("≥ 10 × the tutorial's loop", OURS, 10, True, (TUTORIAL,))
    table = Comparison("Images per second", "images/s", True, series, (target,))
    return [table], [
        "Ours is loading the weights, predicting, writing logits, and the per-class table."
    ]
