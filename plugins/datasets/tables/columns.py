"""The columns of a table that say what its rows are: labels, parts, groups, times and weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from pydantic import Field

from torchyard import RawData, UserError
from torchyard.plugins.datasets.tables.division import HeldOut, listed, newest, parts_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

AUTO = "auto"
USUAL = {
    "image": (
        *("image", "img", "path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image_path", "img_path", "image_file"),
    ),
    "label": ("label", "class", "target", "category", "class_name", "labels"),
    "split": ("split", "subset", "partition"),
    "group": ("group", "group_id", "patient_id", "subject_id"),
    "weight": ("sample_weight", "sample_weights"),
}
# More classes than these, and than half the rows, are numbers or names, but no classes.
MOST_CLASSES = 50
BY_NUMBERS = re.compile(r"(\d{1,2})[./-](\d{1,2})[./-]\d{2,4}\b")
MONTHS = 12
EXACT = 2**53  # up to which a float64 has every whole number


class RowSettings(HeldOut):
    """The columns that every data set of rows may have."""

    label: str = Field(AUTO, description=f"column of the classes; auto: {USUAL['label'][0]}, …")
    split: str | None = Field(
        AUTO, description="column that names each row's part (train, val, test); none: drawn"
    )
    group: str | None = Field(
        AUTO, description="column of what belongs together, and into one part; none: no such"
    )
    weight: str | None = Field(
        AUTO, description="column of the weights that rows are drawn with in training; none: alike"
    )
    time: str | None = Field(
        None, description="column of times or numbers, of which the newest are for testing"
    )

    def columns_in(self, names: Sequence[str], **others: str | None) -> dict[str, str]:
        """The column of each role that has one: `label`, `split`, …, and those in `others`.

        Args:
            names: of all columns.
            others: further settings: a name, "auto", or None.

        Raises:
            UserError: a column is not there, or none can be found for what must have one.
        """
        roles = (*others, "label", "split", "group", "weight", "time")
        wanted = others | {role: getattr(self, role) for role in roles if role not in others}
        lower = {name.strip().casefold(): name for name in reversed(names)}
        lower |= {name: name for name in names}  # rather the one that is written just so
        found, problems = {}, []
        for role in roles:
            name = wanted[role]
            if name is None:
                continue
            if name in names:
                found[role] = name
            elif name != AUTO:
                problems.append(no_column(role, name, names))
            elif usual := next((lower[each] for each in USUAL[role] if each in lower), None):
                found[role] = usual
            elif role in ("label", *others):
                problems.append(
                    f"dataset.{role}: which column? None is named {', '.join(USUAL[role])}  "
                    f"(has: {listed(names)})"
                )
        if problems:
            raise UserError(problems)
        return found


def no_column(setting: str, name: str, names: Sequence[str]) -> str:
    """The message about a column that is not among those there are."""
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"dataset.{setting}: there is no column '{name}'.{hint}  (has: {listed(names)})"


@dataclass
class Rows:
    """What the columns say of each row.

    Attributes:
        classes: sorted names.
        labels: int64 N.
        parts: row numbers of each part: "train", "test" and perhaps "validation".
        groups: N texts (of any length, so they are objects), or None.
        weights: float64 N, or None.
        notes: what was assumed.
    """

    classes: list[str]
    labels: npt.NDArray[np.int64]
    parts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    groups: npt.NDArray[np.object_] | None = None
    weights: npt.NDArray[np.float64] | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: dict[str, str], settings: RowSettings) -> Rows:
        """Read the columns of a table.

        Args:
            frame: with at least those columns.
            columns: by role.
            settings: how the rows are divided.

        Raises:
            UserError: with everything that is wrong with labels, parts, groups and times.
        """
        named = ", ".join(f"{role} '{name}'" for role, name in columns.items())
        notes = [f"columns: {named} (dataset.label and so on choose others)"]
        texts, problems = texts_of(frame[columns["label"]]), []
        if without := rows_of(texts == ""):
            problems.append(f"the column '{columns['label']}' has no label in {without}")
        classes, labels = _classes(texts)
        if not without:
            problems += _class_problems(classes, len(texts), columns["label"])
        found = cls(classes, labels, notes=notes)
        if "group" in columns:
            found.groups = found._grouped(frame[columns["group"]])
        numbers = {}
        for role in {"weight", "time"} & {*columns}:
            try:
                numbers[role] = _finite(frame[columns[role]], moments=role == "time")
            except ValueError as error:
                problems.append(f"dataset.{role}: the column '{columns[role]}' has {error}")
        found.weights = numbers.get("weight")
        if not problems:
            try:
                found.parts = found._divided(frame, columns, settings, numbers.get("time"))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        return found

    def data(self, splits: dict[str, Any], source: str, **more: Any) -> RawData:
        """The raw data of a split for each part."""
        groups = {}
        if self.groups is not None:
            groups = {part: self.groups[indices] for part, indices in self.parts.items()}
        return RawData(
            self.classes,
            **splits,
            source=source,
            groups=groups,
            weights=None if self.weights is None else self.weights[self.parts["train"]],
            notes=[*self.notes, *more.pop("notes", ())],
            **more,
        )

    def _grouped(self, column: pd.Series) -> npt.NDArray[np.object_]:
        import numpy as np

        groups = texts_of(column)
        alone = np.flatnonzero(groups == "")
        if len(alone):
            self.notes.append(f"{len(alone):,} rows have no group: each is one of its own")
            groups[alone] = [f"\nrow {row + 1}" for row in alone]  # no name begins with a \n
        return groups

    def _divided(
        self,
        frame: pd.DataFrame,
        columns: dict[str, str],
        settings: RowSettings,
        times: npt.NDArray[np.float64] | None,
    ) -> dict[str, npt.NDArray[np.int64]]:
        import numpy as np

        parts: dict[str, npt.NDArray[np.int64]] = {"train": np.arange(len(self.labels))}
        if "split" in columns:
            parts, notes = parts_of(texts_of(frame[columns["split"]]), columns["split"])
            self.notes += notes
        if "test" in parts:
            why = f"the column '{columns['split']}' has one: set dataset.split=none"
            settings.refuse_folds(why)
            if times is not None:
                raise UserError(f"dataset.time chooses the test part, but {why}, or dataset.time")
            return parts
        train = parts["train"]
        groups = None if self.groups is None else self.groups[train]
        if times is not None:
            settings.refuse_folds("dataset.time chooses it")
            rest, test = newest(times[train], settings.test_fraction, groups)
            self.notes.append(f"the newest {len(test):,} of {len(train):,} rows are for testing")
        else:
            rest, test = settings.drawn(self.labels[train], groups)
        return parts | {"train": train[rest], "test": train[test]}


def texts_of(column: pd.Series) -> npt.NDArray[np.object_]:
    """The values as texts, whole numbers without a point, composed; "" where one is missing."""
    import numpy as np
    import pandas as pd

    if pd.api.types.is_float_dtype(column):
        present = column.dropna()
        if (present % 1 == 0).all() and (present.abs() < EXACT).all():
            column = column.astype("Int64")
    texts = column.astype(object).where(column.notna(), "")
    return np.array([normalize("NFC", str(value)).strip() for value in texts], dtype=object)


def _classes(texts: npt.NDArray[np.object_]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Sorted names, numbers by their value, and the index of each text."""
    import numpy as np

    names, labels = np.unique(texts, return_inverse=True)
    order = np.arange(len(names))
    with suppress(ValueError):  # one is no number
        order = np.argsort([float(name) for name in names], kind="stable")
    return names[order].tolist(), np.argsort(order)[labels].astype(np.int64)


def _class_problems(classes: list[str], rows: int, column: str) -> list[str]:
    if not rows:
        return ["the table has no rows"]
    if len(classes) == 1:
        return [
            f"there is only one class in the column '{column}', '{classes[0]}'; "
            "a classifier needs two"
        ]
    if len(classes) > max(MOST_CLASSES, rows / 2):
        return [
            f"the column '{column}' has {len(classes):,} different values in {rows:,} rows: they "
            "are no classes; set dataset.label (regression is out of torchyard's scope)"
        ]
    return []


def _finite(column: pd.Series, moments: bool) -> npt.NDArray[np.float64]:
    """The values of a column as numbers; of times, seconds.

    Raises:
        ValueError: some are none.
    """
    import numpy as np
    import pandas as pd

    numbers = column
    if not pd.api.types.is_numeric_dtype(column):
        if moments:
            day_first = _day_first(texts_of(column))
            times = pd.to_datetime(
                column, errors="coerce", utc=True, format="mixed", dayfirst=day_first
            )
            numbers = (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
        else:
            numbers = pd.to_numeric(column, errors="coerce")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    if without := rows_of(~np.isfinite(values)):
        raise ValueError(f"no {'time' if moments else 'number'} in {without}")
    return values


def _day_first(texts: npt.NDArray[np.object_]) -> bool:
    """Whether dates such as 13/02/2024 begin with the day.

    Raises:
        ValueError: there are dates of which nobody can tell, such as 01/02/2024.
    """
    found = [numbers.groups() for text in texts if (numbers := BY_NUMBERS.match(text))]
    firsts = max((int(first) for first, _ in found), default=0)
    seconds = max((int(second) for _, second in found), default=0)
    if found and (firsts > MONTHS) == (seconds > MONTHS):
        example = next(text for text in texts if BY_NUMBERS.match(text))
        raise ValueError(f"dates such as '{example}': day or month first? Write 2024-02-13")
    return firsts > MONTHS


def rows_of(chosen: Any) -> str:
    """ "3 rows: 5, 9, 12", counted from 1 without the header; "" if there are none."""
    rows = [index + 1 for index in chosen.nonzero()[0].tolist()]
    return f"{len(rows):,} row{'s' * (len(rows) > 1)}: {listed(rows)}" if rows else ""
