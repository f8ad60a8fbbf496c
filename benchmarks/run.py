"""Measure rows, all or those named, and write RESULTS.md from what every row last showed."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks import archive
from benchmarks.bench import Bench, Skipped
from benchmarks.comparison import Result
from benchmarks.machine import facts
from benchmarks.page import page
from benchmarks.rows import scale

FOLDER = Path(__file__).parent
SCALE = FOLDER.parent / "docs" / "scale.md"
RESULTS, REASONS, PAGE = FOLDER / "results", FOLDER / "reasons", FOLDER / "RESULTS.md"
ROWS = (
    "commands",
    "fixed_cost",
    "throughput",
    "resnet18",
    "accuracy",
    "finetuning",
    "prepare",
    "audit",
    "photos",
    "evaluate",
    "memory",
    "logging",
    "checkpoints",
    "processors",
    "processes",
    "engines",
    "scale",
)


def measure(row: str, bench: Bench) -> Result:
    """Measure one row; whatever goes wrong is the row's result."""
    module = importlib.import_module(f"benchmarks.rows.{row}")
    bench.prefix = row
    started = time.monotonic()
    try:
        comparisons, notes = module.measure(bench)
    except Skipped as reason:
        bench.say(f"skipped: {reason}")
        return Result(row, module.TITLE, "skipped", str(reason), facts=facts())
    except Exception as error:  # the other rows go on
        traceback.print_exc()
        return Result(row, module.TITLE, "failed", f"{error}", facts=facts())
    seconds = time.monotonic() - started
    bench.say(f"done in {seconds:.0f} s")
    return Result(
        row,
        module.TITLE,
        comparisons=tuple(comparisons),
        notes=tuple(notes),
        facts={**facts(), "seconds": seconds},
    )


def main() -> int:
    """Measure, write, and tell by the exit status whether every row could be measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--quick", action="store_true", help="try it: short, once each; prints, writes nothing"
    )
    parser.add_argument(
        "--write", action="store_true", help="measure nothing, write RESULTS.md anew"
    )
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")

    # Terminated, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = {}
    with tempfile.TemporaryDirectory(prefix="torchyard-bench-") as scratch:
        bench = Bench(Path(scratch), archive.find(), options.quick)
        for row in [] if options.write else options.rows or ROWS:
            results[row] = measure(row, bench)
            if not options.quick:
                RESULTS.mkdir(exist_ok=True)
                text = json.dumps(results[row].to_json(), indent=1, ensure_ascii=False)
                (RESULTS / f"{row}.json").write_text(text + "\n")
                write()  # a run that is interrupted leaves what it has measured
    if options.quick:
        print(page(list(results.values()), {}))
    else:
        write()
    return 1 if any(result.state == "failed" for result in results.values()) else 0


def write() -> None:
    """Write the page from the files of all rows."""
    files = {row: RESULTS / f"{row}.json" for row in ROWS}
    results = [
        Result.from_json(json.loads(file.read_text())) for file in files.values() if file.exists()
    ]
    reasons = {path.stem: path.read_text("utf-8") for path in REASONS.glob("*.md")}
    PAGE.write_text(page(results, reasons), "utf-8")
    for result in results:
        if result.row == "scale" and result.state == "measured":
            before, _, rest = SCALE.read_text("utf-8").partition(scale.FIRST)
            table = "\n".join([scale.FIRST, "", *scale.arithmetic(result), "", ""])
            after = rest[rest.index(scale.LAST) :]
            SCALE.write_text(before + table + after, "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
