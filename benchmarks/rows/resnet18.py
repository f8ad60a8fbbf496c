"""How fast torchvision's resnet18 is trained at batch 128."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Target
from benchmarks.rows.throughput import LOOPS, OURS, Case, compare

TITLE = "Training throughput: resnet18 (torchvision's, ten outputs) on CIFAR-10's images, batch 128"
STEPS, THEIR_STEPS, BATCH_SIZE, ROUNDS = 96, 32, 128, 5
ALL = {**LOOPS, "timm": "timm_loop"}


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """One table."""
    target = Target("≥ 1.1 × the best of the others", OURS, 1.1, True, tuple(ALL))
    images = bench.images(THEIR_STEPS * BATCH_SIZE)
    case = Case(BATCH_SIZE, f"train.max_steps={STEPS}", images, (target,), STEPS)
    tables = compare(bench, [case], "resnet18", ALL, ROUNDS)
    return tables, [case.note, "timm's is its own resnet18, of the same layers."]
