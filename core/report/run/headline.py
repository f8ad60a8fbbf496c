"""What a run's report says first: its result, against the champion, and a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from torchyard.core.formatting import percent, points

if TYPE_CHECKING:
    from torchyard.core.evaluation.metrics import Evaluation
    from torchyard.core.evaluation.paired_test import Difference

SHOWN_COMMIT = 7  # characters, as git shows it


@dataclass(frozen=True)
class Rival:
    """The champion that a run is compared with.

    Attributes:
        model, version: the registered model that it is of.
        difference: from the champion to the run, on the same test samples.
    """

    model: str
    version: int
    difference: Difference

    @property
    def name(self) -> str:
        """`the champion (version 3 of digits)`."""
        return f"the champion (version {self.version} of {self.model})"

    @property
    def verdict(self) -> str:
        """Whether the run is better, in a sentence."""
        found = self.difference
        apart = found.only_first + found.only_second
        if not found.told_apart:
            many = f"{apart:,} of {found.images:,} test samples tell the two apart"
            leaning = f"{found.only_second:,} of them in its favour"
            return f"It cannot be told apart from {self.name}: {many}, {leaning}."
        better = "better" if found.difference > 0 else "worse"
        span = f"{points(found.low)} to {points(found.high)} points"
        return f"It is {better} than {self.name}: {span}, in 19 of 20 such comparisons."


@dataclass(frozen=True)
class Headline:
    """The first lines of a report.

    Attributes:
        dataset: the data set's name.
        evaluation: of the test split.
        started: when the run began, with its time zone.
        commit: of the code, in full; None where it is not known.
        rival: the champion, if there is one on the same test samples.
    """

    dataset: str
    evaluation: Evaluation
    started: datetime
    commit: str | None
    rival: Rival | None

    @property
    def result(self) -> str:
        """`98.3 % ± 1.4`: the accuracy, and half of the width of its 95 % interval."""
        low, high = self.evaluation.interval
        return f"{percent(self.evaluation.accuracy)} ± {50 * (high - low):.1f}"

    @property
    def against(self) -> str:
        """`+0.8 against the champion (p = 0.02)`; empty without one."""
        if self.rival is None:
            return ""
        found = self.rival.difference
        return f"{points(found.difference)} against the champion (p = {found.p_value:.2g})"

    @property
    def origin(self) -> list[str]:
        """When the run began, and the commit of the code."""
        began = f"{self.started.day} {self.started:%b %Y %H:%M} {self.started.tzname() or ''}"
        return [began.strip(), *([f"commit {self.commit[:SHOWN_COMMIT]}"] if self.commit else [])]

    @property
    def text(self) -> str:
        """All of it in one line."""
        return " · ".join(filter(None, (self.dataset, self.result, self.against, *self.origin)))

    @property
    def verdict(self) -> str:
        """What to think of the run, in two sentences."""
        result = self.evaluation
        table = result.per_class.dropna(subset=["accuracy"])
        low, high = result.interval
        said = (
            self.rival.verdict
            if self.rival
            else f"On other samples of the same kind, expect {percent(low)} to {percent(high)}."
        )
        if len(table) > 1:
            said += f" Weakest class: {result.worst_class}, {percent(table['accuracy'].min())}"
        if confused := result.most_confused(1):
            true, guess, count = confused[0]
            names = result.per_class["class"].tolist()
            of = result.confusion[true].sum()
            said += f"; most frequent mistake: {names[true]} taken for {names[guess]}, in "
            said += f"{count:,} of {of:,}"
        return said.rstrip(".") + "."
