"""What a row measured, and what follows from it: ratios, medians, verdicts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", float, list[float])


@dataclass(frozen=True)
class Spread:
    """The median of several values, and how far apart they lie."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Series:
    """What one contender showed, a value a round; the same place in two series is one round."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Target:
    """What one series is to reach.

    Attributes:
        text: as the page says it.
        series: the one that is judged.
        limit: of its ratio to another, or of itself.
        at_least: whether the limit is to be reached; else it must not be passed.
        against: whom it is compared with: the best of these; none: its own value is judged.
    """

    text: str
    series: str
    limit: float
    at_least: bool
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One table: the same work, done by several.

    Attributes:
        caption: what was done.
        unit: of the values.
        more_is_better: whether the best has the greatest value.
        series: ours first: it is divided by each of the others.
        targets: what ours is to reach.
    """

    caption: str
    unit: str
    more_is_better: bool
    series: tuple[Series, ...]
    targets: tuple[Target, ...] = ()

    def named(self, name: str) -> Series:
        """The series of that name."""
        return next(series for series in self.series if series.name == name)

    def ratios(self, name: str, other: str) -> Spread:
        """`name` over `other`, round by round: what slows the machine slows both."""
        pairs = zip(self.named(name).values, self.named(other).values, strict=False)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    def best(self, names: Sequence[str]) -> str:
        """Which of these has the best median."""
        choose = max if self.more_is_better else min
        return choose(names, key=lambda name: Spread.of(self.named(name).values).median)

    def measured(self, target: Target) -> Spread:
        """What is held against the target's limit."""
        if target.against:
            return self.ratios(target.series, self.best(target.against))
        return Spread.of(self.named(target.series).values)

    def reached(self, target: Target) -> bool:
        """Whether the median keeps the limit."""
        median = self.measured(target).median
        return median >= target.limit if target.at_least else median <= target.limit


@dataclass(frozen=True)
class Result:
    """How a row went.

    Attributes:
        row: its name, as `run.py` takes it.
        title: what it measures.
        state: measured, skipped or failed.
        reason: why, if it was not measured.
        comparisons: its tables.
        notes: what a reader must know to judge them.
        facts: where, when, with what: commit, date, seconds it took.
    """

    row: str
    title: str
    state: str = "measured"
    reason: str = ""
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether every target of every table is."""
        return all(table.reached(target) for table in self.comparisons for target in table.targets)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`."""
        comparisons = tuple(
            Comparison(
                **{
                    **table,
                    "series": tuple(
                        Series(series["name"], tuple(series["values"]))
                        for series in table["series"]
                    ),
                    "targets": tuple(
                        Target(**{**target, "against": tuple(target["against"])})
                        for target in table["targets"]
                    ),
                }
            )
            for table in values["comparisons"]
        )
        return cls(**{**values, "comparisons": comparisons, "notes": tuple(values["notes"])})


def alternate(
    rounds: int, contenders: Mapping[str, Callable[[], T]], say: Callable[[str], None]
) -> dict[str, list[T]]:
    """Measure A B C, A B C, …: what a machine does to one round it does to all of them."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            found[name].append(value)
            values = value if isinstance(value, list) else [value]
            shown = ", ".join(f"{each:,.4g}" for each in values)
            say(f"round {number} of {rounds}: {name}: {shown}")
    return found
