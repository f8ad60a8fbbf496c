"""One model trained by two processes, against one process that has all the processors."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench, images_of
from benchmarks.comparison import Comparison, Series, Target, alternate

TITLE = "DDP of two processes against one, on one machine"
ONE, TWO = "one process", "two processes (ddp)"
BATCH_SIZE, STEPS, ROUNDS = 128, 48, 3
WAYS = {TWO: ("train.parallel=ddp", "train.processes=2"), ONE: ()}


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """A table for a model of little work in a step, and one for a model of much."""
    steps = STEPS // 8 if bench.quick else STEPS
    tables = []
    with bench.home("processes") as home:
        data = images_of(bench.training_archive)
        for model in ("lenet", "resnet18"):
            work = [*data, f"model={model}", f"train.batch_size={BATCH_SIZE}"]
            work += [f"train.max_steps={steps}", "train.log_every=1000000"]

            def speed(way: str, work: list[str]) -> float:
                found = home.script("own.training", "cifar10", home.cache, *work, *WAYS[way])
                return steps * BATCH_SIZE / float(found["steps_seconds"])

            contenders = {way: partial(speed, way, work) for way in WAYS}
            found = alternate(bench.rounds(ROUNDS), contenders, bench.say)
            series = tuple(Series(way, tuple(values)) for way, values in found.items())
            target = Target("≥ 0.8 × one process", TWO, 0.8, True, (ONE,))
            targets = (target,) if model == "resnet18" else ()
            tables.append(Comparison(model, "images/s", True, series, targets))
    return tables, [
        f"Batch {BATCH_SIZE}, {steps} steps; starting the processes is not counted. One process "
        "has a thread for each processor, each of two half as many. Two on one CPU can only lose "
        "what they tell each other; on GPUs and hosts they add up.",
    ]
