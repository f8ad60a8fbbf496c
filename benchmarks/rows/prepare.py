"""From an archive of JPEG files to arrays."""

from __future__ import annotations

import shutil

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate

TITLE = "Preparation: 60,000 JPEGs in a .tar.gz archive → arrays on disk"
OURS, AGAIN, SCRIPT = "torchyard", "torchyard, again", "extract + PIL, one thread"
LIMIT = 0.3


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Into an empty cache and again, beside the short script."""
    again: list[float] = []
    counts = set()
    with bench.home("prepare") as home:
        home.script("own.preparation", bench.archive, home.folder / "warm-up")  # reads the archive

        def ours() -> float:
            found = [home.script("own.preparation", bench.archive, home.cache) for _ in range(2)]
            shutil.rmtree(home.cache)
            again.append(found[1]["seconds"])
            counts.add(found[0]["images"])
            return float(found[0]["images"] / found[0]["seconds"])

        def script() -> float:
            folder = home.folder / "extracted"
            found = home.script("peers.extraction", bench.archive, folder)
            shutil.rmtree(folder)
            counts.add(found["images"])
            return float(found["images"] / found["seconds"])

        found = alternate(bench.rounds(3), {OURS: ours, SCRIPT: script}, bench.say)
    series = tuple(Series(name, tuple(values)) for name, values in found.items())
    tables = [
        Comparison(
            "Images per second",
            "images/s",
            True,
            series,
            (Target("≥ 3 × faster", OURS, 3, True, (SCRIPT,)),),
        ),
        Comparison(
            "A second time, in a new process",
            "seconds",
            False,
            (Series(AGAIN, tuple(again)),),
            (Target(f"a second run ≤ {LIMIT} s", AGAIN, LIMIT, False),),
        ),
    ]
    number = " and ".join(f"{count:,}" for count in sorted(counts))
    return tables, [f"{number} images; imports do not count, digest, statistics and fsync do."]
