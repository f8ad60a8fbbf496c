"""How fast torchvision's resnet18 is trained at batch 128."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Target
from benchmarks.rows.throughput import LOOPS, OURS, compare, lengths, table

TITLE = "Training throughput: resnet18 (torchvision's, ten outputs) on CIFAR-10's images, batch 128"
STEPS, BATCH_SIZE = 24, 128
ALL = {**LOOPS, "timm": "timm_loop"}


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """One table."""
    images = STEPS * BATCH_SIZE
    with bench.home("resnet18") as home, bench.home("peers") as peers:
        home.torchyard("inspect", "image_folder", f"path={bench.training_archive}")
        overrides = [f"train.batch_size={BATCH_SIZE}", f"train.max_steps={STEPS}"]
        first, runs, found = compare(
            bench, home, peers, overrides, BATCH_SIZE, images, "resnet18", ALL
        )
    target = Target("≥ 1.1 × the best of the others", OURS, 1.1, True, tuple(ALL))
    notes = [lengths(first, runs, images), "timm's is its own resnet18, of the same layers."]
    return [table("Batch 128", found, (target,))], notes
