"""What writing a checkpoint every epoch costs."""

from __future__ import annotations

from benchmarks.bench import Bench, images_of
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import BenchmarkError

TITLE = "Checkpoints: writing one at the end of every epoch"
SHARE = "share of the train stage"
LIMIT = 1.0


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """The share of the train stage that goes into writing, where epochs are shortest."""
    written: list[int] = []
    with bench.home("checkpoints") as home:
        work = [*images_of(bench.training_archive), "train.epochs=3", "train.batch_size=512"]

        def share() -> float:
            found = home.script("own.training", "cifar10", home.cache, *work)
            written.append(found["checkpoints"])
            if not found["checkpoints"]:
                raise BenchmarkError("no checkpoint was seen being written")
            return float(100 * found["checkpoint_seconds"] / found["seconds"])

        found = alternate(bench.rounds(3), {SHARE: share}, bench.say)
    table = Comparison(
        "LeNet, batch 512, epochs of 50,000 images",
        "% of the train stage's time",
        False,
        (Series(SHARE, tuple(found[SHARE])),),
        (Target("checkpoints every epoch ≤ 1 % of training time", SHARE, LIMIT, False),),
    )
    return [table], [
        f"{written[0]} checkpoints in 3 epochs, each written, brought to the disk (fsync) and "
        "renamed. Timed around `checkpoint.save`: two runs differ by far more than this share."
    ]
