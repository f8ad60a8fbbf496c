"""What an audit of 60,000 images takes, beside preparing them, and what it finds."""

from __future__ import annotations

import shutil
import statistics

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target

TITLE = "Audit: 60,000 images, all pairs compared"
AUDIT, PREPARE = "audit", "preparing them"
RECALL, FALSE = 0.9, 0.005


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """An empty cache each time: prepare, audit, and an audit of planted copies."""
    found = []
    with bench.home("audit") as home:
        for _ in range(bench.rounds(3)):
            found.append(home.script("own.auditing", bench.archive, home.cache))
            shutil.rmtree(home.cache)
            bench.say(f"audit {found[-1]['audit']:.1f} s, prepare {found[-1]['prepare']:.1f} s")
    series = tuple(
        Series(name, tuple(each[key] for each in found))
        for name, key in ((AUDIT, "audit"), (PREPARE, "prepare"))
    )
    recall = [
        Series(name, tuple(each["recall"][name] for each in found)) for name in found[0]["recall"]
    ]
    false = Series("images paired by chance", tuple(each["false"] for each in found))
    tables = [
        Comparison(
            "Seconds",
            "seconds",
            False,
            series,
            (Target("at most the time of preparing", AUDIT, 1, False, (PREPARE,)),),
        ),
        Comparison(
            "Share of 4,000 planted copies that is found",
            "share",
            True,
            tuple(recall),
            tuple(
                Target(f"{each.name}: ≥ {RECALL:.0%}", each.name, RECALL, True) for each in recall
            ),
        ),
        Comparison(
            "Share of images that is in a pair by chance",
            "share",
            False,
            (false,),
            (Target(f"≤ {FALSE:.1%}", false.name, FALSE, False),),
        ),
    ]
    leaked = found[0]["leaked"]
    processor = statistics.median(each["processor"] for each in found)
    return tables, [
        f"Of processor time the audit takes {processor:.2f} times what preparing takes.",
        f"{leaked:.2%} of the test images are in the training split, exactly or nearly.",
        "Pairs by chance are counted by those of two classes, of which CIFAR-10 has ten alike "
        "in number.",
    ]
