"""How much memory a whole run takes, and what ten times the data add."""

from __future__ import annotations

from pathlib import Path

from benchmarks import archive
from benchmarks.bench import Bench, Run, Skipped, images_of
from benchmarks.comparison import Comparison, Series, Target
from benchmarks.home import Home, Weight

TITLE = "Memory: the peak of all processes together, shared pages counted once (PSS)"
OURS, TUTORIAL = "torchyard run", "tutorial's loop"
TENFOLD, PLAIN = "600,000 images", "60,000 images"
STEPS = 2_000  # of batch 4: every part of the run has been there by then


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """The tutorial's job in both ways; then an epoch over the data and over ten times the data."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise Skipped("needs Linux, which tells how much of a page each process has")
    ours: list[Weight] = []
    theirs: list[Weight] = []
    for number in range(1, bench.rounds(3) + 1):
        with bench.home("run") as home:
            overrides = [*images_of(bench.archive), f"train.max_steps={STEPS}"]
            ours.append(_run(home, overrides)[1])
        with bench.home("tutorial") as peers, peers.weighed() as weight:
            bench.peer(peers, "tutorial_loop", "--test", "--images", bench.images(8_000))
        theirs.append(weight)
        bench.say(f"round {number}: {ours[-1].total:,.0f} MiB, {weight.total:,.0f} MiB")

    tenfold = bench.scratch / "tenfold.tar.gz"
    archive.repacked(bench.archive, tenfold, times=10)
    lengths: dict[str, tuple[Run, Weight]] = {}
    for name, source in ((TENFOLD, tenfold), (PLAIN, bench.archive)):
        with bench.home("length") as home:
            overrides = [*images_of(source), "train.epochs=1", "train.batch_size=512"]
            run, weight = lengths[name] = _run(home, overrides)
        bench.say(f"{name}: {weight.total:,.0f} MiB, {run.seconds:.1f} s")
    tenfold.unlink()

    notes = [
        f"`torchyard run cifar10` with {STEPS:,} steps: command, torch process, Prefect's server "
        "and, while images are decoded, decoders. The tutorial's loop: its process and two "
        "workers, all images in memory; it trains 8,000 of them and tests.",
        "Anonymous memory is what programs have allocated; the rest of a peak is pages of files: "
        "libraries, and the mapped arrays. The kernel drops those when memory is short. "
        + _parts("torchyard run", ours[0])
        + _parts("The tutorial's loop", theirs[0]),
        f"{TENFOLD}: every JPEG ten times, in one archive; the whole run is preparation, an epoch "
        "of batch 512, evaluation and report. "
        + "".join(_parts(name, weight) for name, (_, weight) in lengths.items()),
    ]
    return [_beside(ours, theirs), *_lengths(lengths)], notes


def _run(home: Home, overrides: list[str]) -> tuple[Run, Weight]:
    with home.weighed() as weight:
        ended = home.torchyard("run", "cifar10", *overrides, "--json")
    home.settle()
    return Run.of(ended), weight


def _beside(ours: list[Weight], theirs: list[Weight]) -> Comparison:
    return Comparison(
        "The whole run on CIFAR-10",
        "MiB",
        False,
        (
            Series(OURS, tuple(weight.total for weight in ours)),
            Series(TUTORIAL, tuple(weight.total for weight in theirs)),
        ),
        (Target("not more than the tutorial's processes", OURS, 1.0, False, (TUTORIAL,)),),
    )


def _lengths(found: dict[str, tuple[Run, Weight]]) -> list[Comparison]:
    def table(caption: str, unit: str, values: dict[str, float], *targets: Target) -> Comparison:
        series = tuple(Series(name, (value,)) for name, value in values.items())
        return Comparison(caption, unit, False, series, targets)

    def flat(kind: str) -> Target:
        return Target(f"{kind}: ten times the data add at most 10 %", TENFOLD, 1.1, False, (PLAIN,))

    return [
        table(
            "Ten times the data: peak of anonymous memory",
            "MiB",
            {name: weight.most_anonymous for name, (_, weight) in found.items()},
            flat("anonymous memory"),
        ),
        table(
            "Ten times the data: peak, mapped files included",
            "MiB",
            {name: weight.total for name, (_, weight) in found.items()},
            flat("with the mapped files' pages"),
        ),
        table(
            "Ten times the data: the whole process",
            "seconds",
            {name: run.seconds for name, (run, _) in found.items()},
            Target("ten times the data in at most 11 × the time", TENFOLD, 11, False, (PLAIN,)),
        ),
    ]


def _parts(name: str, weight: Weight) -> str:
    shares = ", ".join(f"{program} {size:,.0f}" for program, size in weight.shares.items())
    return (
        f"{name} at its peak: {weight.anonymous:,.0f} MiB anonymous and {weight.files:,.0f} MiB of "
        f"files ({shares}). "
    )
