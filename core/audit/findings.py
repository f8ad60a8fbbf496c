"""What an audit found, one row for each finding, and its Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.data.files import written

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

AUDIT_FILE = "audit.parquet"  # beside the arrays, and an artifact of a run
FORMAT = 2  # of the methods and the table: another one is audited anew

# The kinds of finding, in the order they are shown, and what is said of each.
KINDS = {
    "exact duplicate": "the same values twice",
    "near duplicate": "images that are nearly the same: shifted, mirrored, brighter, compressed",
    "label conflict": "the same image under two labels",
    "label error": "another class fits better, by a classifier that has not seen the sample",
    "no content": "every pixel or value is the same, or nearly",
    "class shares": "a class that is much more frequent in one split than in another",
    "groups": "a group with samples in two splits",
    "classes alike": "two classes that share images",
}


@dataclass(frozen=True)
class Finding:
    """A row of the table.

    Attributes:
        kind: one of `KINDS`.
        split, index: the sample, from 0 in its split; -1 where it is about a class or group.
        other_split, other_index: the sample that it is like; "" and -1 where there is none.
        label, other: names: of the sample's class, and of the other's or of the one that fits.
        score: 1 for the same values, the correlation of near duplicates, the probability of the
            class that fits, the difference of two shares: more is surer or worse.
        note: the rest, in words.
    """

    kind: str
    split: str
    index: int = -1
    other_split: str = ""
    other_index: int = -1
    label: str = ""
    other: str = ""
    score: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """The findings of a data set.

    Attributes:
        findings: sorted by kind, then the surest first.
        leaked: by split the indices of the samples that are, exactly or nearly, in another split:
            for "train" those that a validation or test split has too, for "test" and
            "validation" those that are in the training split.
        facts: how it was done and what was not, in words or numbers.
        digest: of the data set.
    """

    findings: Sequence[Finding]
    leaked: dict[str, list[int]]
    facts: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def count(self, kind: str) -> int:
        """How many findings of a kind there are."""
        return sum(finding.kind == kind for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each kind there are, where there is one."""
        return {kind: count for kind in KINDS if (count := self.count(kind))}

    def summary(self, samples: Mapping[str, int]) -> str:
        """The numbers of findings in one line.

        Args:
            samples: how many each split has.
        """
        found = [f"{count:,} {kind}" for kind, count in self.counts.items()] or ["nothing found"]
        for split, indices in self.leaked.items():
            if split != "train":
                found.append(f"{len(indices):,} of {samples[split]:,} {split} samples leaked")
        return ", ".join(found)

    def leaked_samples(self, split: str) -> npt.NDArray[np.int64]:
        """The indices of the samples of a split that are in another, too."""
        import numpy as np

        return np.asarray(self.leaked.get(split, []), np.int64)

    def frame(self) -> pd.DataFrame:
        """The table as a pandas data frame, as in the file."""
        import pandas as pd

        names = list(Finding.__dataclass_fields__)
        rows = [[getattr(finding, name) for name in names] for finding in self.findings]
        table = pd.DataFrame(rows, columns=names)
        table.attrs = {
            "format": FORMAT,
            "leaked": self.leaked,
            "facts": self.facts,
            "digest": self.digest,
        }
        return table

    def write(self, path: Path) -> None:
        """Write the Parquet file atomically.

        Raises:
            RunError: it cannot be written.
        """
        with written(path, "The audit") as file:
            self.frame().to_parquet(file, index=False)

    @classmethod
    def read(cls, path: Path) -> Audit | None:
        """Read what `write` wrote; None where it is missing, damaged or of another format."""
        import pandas as pd

        try:
            table = pd.read_parquet(path)
            if table.attrs.get("format") != FORMAT:
                return None
            findings = [Finding(*row) for row in table.itertuples(index=False, name=None)]
            leaked, facts, digest = (table.attrs[key] for key in ("leaked", "facts", "digest"))
            return cls(findings, leaked, facts, digest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
