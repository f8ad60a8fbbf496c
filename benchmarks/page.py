"""RESULTS.md: all that was measured, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.comparison import Comparison, Result, Spread, Target

HEAD = """\
# Results

Written by `make bench` ([how to run it](../docs/benchmarks.md)). Medians of alternating runs,
with the least and the greatest value. A ratio is taken round by round; its median is what a
target is held against.
"""


def page(results: Sequence[Result], reasons: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        results: of every row, in order.
        reasons: Markdown by a row's name: why it falls short; shown if it does.
    """
    lines = [HEAD]
    measured = [result for result in results if result.state == "measured"]
    head: Mapping[str, Any] = {"machine": "", "versions": {}}
    if measured:
        head = max(measured, key=lambda result: result.facts["date"]).facts
        lines += [f"- Machine: {head['machine']}", f"- Versions: {_versions(head['versions'])}"]
    lines += ["- Again: `make bench`, or one row: `make bench ROWS=throughput`", ""]
    lines += ["## Targets", *_table(("row", "target", "measured", "reached"), _summary(results))]
    for result in results:
        lines += ["", *_row(result, head)]
        if result.row in reasons and not result.reached:
            lines += ["", reasons[result.row].strip()]
    return "\n".join(lines) + "\n"


def _summary(results: Iterable[Result]) -> Iterable[tuple[str, ...]]:
    for result in results:
        link = f"[{result.row}](#{result.row})"
        if result.state != "measured":
            yield link, "–", f"{result.state}: {_one_line(result.reason)}", "–"
        for table in result.comparisons:
            for target in table.targets:
                reached = "yes" if table.reached(target) else "**no**"
                yield link, target.text, _measured(table, target), reached


def _row(result: Result, head: Mapping[str, Any]) -> Iterable[str]:
    """A row's part of the page; `head` has the machine and versions that the page begins with."""
    yield f"## {result.row}"
    yield ""
    if result.state != "measured":
        yield f"{result.title}. **{result.state.capitalize()}**: {_one_line(result.reason)}"
        return
    facts = result.facts
    yield (
        f"{result.title}. `make bench ROWS={result.row}`; {facts['date']}, commit "
        f"{facts['commit']}, {facts['seconds']:.0f} s."
    )
    if facts["machine"] != head["machine"]:
        yield ""
        yield f"**On another machine**: {facts['machine']}."
    if others := dict(facts["versions"].items() - head["versions"].items()):
        yield ""
        yield f"**With other versions**: {_versions(others)}."
    for table in result.comparisons:
        yield ""
        yield f"**{table.caption}**"
        yield ""
        yield from _table(
            ("", f"{table.unit}, median", "least to greatest", "runs", "the first ÷ this"),
            _series(table),
        )
    if result.notes:
        yield ""
        yield from (f"- {note}" for note in result.notes)


def _versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _series(table: Comparison) -> Iterable[tuple[str, ...]]:
    first = table.series[0].name
    # Where values are judged by themselves, they are not to be compared either.
    alone = any(not target.against for target in table.targets)
    for series in table.series:
        spread = Spread.of(series.values)
        ratio = "" if alone or series.name == first else _ratio(table.ratios(first, series.name))
        apart = f"{_number(spread.least)} to {_number(spread.greatest)}"
        yield series.name, _number(spread.median), apart, str(len(series.values)), ratio


def _measured(table: Comparison, target: Target) -> str:
    spread = table.measured(target)
    if target.against:
        return f"{_ratio(spread)} {table.best(target.against)}"
    apart = f"({_number(spread.least)} to {_number(spread.greatest)})"
    return f"{_number(spread.median)} {table.unit} {apart}"


def _ratio(spread: Spread) -> str:
    # Where a hundredth decides, three digits.
    digits = 3 if 0.9 < spread.median < 1.1 else 2
    return (
        f"{spread.median:.{digits}f} × ({spread.least:.{digits}f} to {spread.greatest:.{digits}f})"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
