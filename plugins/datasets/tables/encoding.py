"""The encoding of a table's rows as vectors: learnt from training rows, the same in serving.

    encoding = Encoding.model_validate(model.metadata.metadata["encoding"])
    logits = model.predict(encoding.vectors(pandas.read_csv("new.csv")))

Numbers stay as they are, since the network's first layer standardizes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from torchyard import UserError
from torchyard.plugins.datasets.tables.columns import rows_of, texts_of
from torchyard.plugins.datasets.tables.division import listed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    Numbers = npt.NDArray[np.float64]


DATE = re.compile(r"\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}([ T]|\s*$)")
# A column of texts of which at least so many are numbers was hardly meant as categories.
MOST_NUMBERS = 0.5


class Column(BaseModel):
    """How a column of the table becomes components of the vector.

    Attributes:
        name: of the column.
        kind: "number": its value; "category": a component for each category, 1 for its own and 0
            for the others, which are all 0 where the value is missing or another.
        median: of the training rows, in place of a number that is missing.
        indicator: whether one more component is 1 where the number is missing, else 0.
        categories: sorted texts.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["number", "category"]
    median: float = 0.0
    indicator: bool = False
    categories: tuple[str, ...] = ()

    @property
    def components(self) -> list[str]:
        """The names of its components: "age", "age missing", "city=Berlin"."""
        if self.kind == "number":
            return [self.name, f"{self.name} missing"][: 1 + self.indicator]
        return [f"{self.name}={category}" for category in self.categories]

    def values(self, column: pd.Series) -> Numbers:
        """N x components."""
        import numpy as np

        if self.kind == "number":
            numbers = numbers_of(column)
            missing = np.isnan(numbers)
            filled = np.where(missing, self.median, numbers)
            return np.stack([filled, missing], axis=1)[:, : 1 + self.indicator]
        own: Numbers = self.codes(column)[:, None] == np.arange(len(self.categories))
        return own.astype(np.float64)

    def codes(self, column: pd.Series) -> npt.NDArray[np.intp]:
        """The index of each value's category; -1 where it is of none."""
        import pandas as pd

        own = pd.Index(texts_of(column), dtype=object)
        return pd.Index(self.categories, dtype=object).get_indexer(own)


class Encoding(BaseModel):
    """The columns of a table that its rows' vectors are made of, in their order."""

    model_config = ConfigDict(frozen=True)

    columns: tuple[Column, ...]

    @classmethod
    def fitted(cls, frame: pd.DataFrame, categorical: Sequence[str], most: int) -> Encoding:
        """The encoding that training rows ask for.

        Args:
            frame: the training rows.
            categorical: columns of numbers that are categories all the same.
            most: categories that a column may have.

        Raises:
            UserError: with every column that cannot be encoded.
        """
        import pandas as pd

        columns, problems = [], []
        for name in frame:
            column, named = frame[name], f"the column '{name}'"
            number = pd.api.types.is_numeric_dtype(column) and name not in categorical
            advice = f"leave it out with dataset.ignore=[{name}]"
            if _holds_times(column):
                problems.append(f"{named} has times, which are no numbers: {advice}")
            elif not column.notna().any():
                problems.append(f"{named} has no value in any training row: {advice}")
            elif number:
                numbers = numbers_of(column)
                median = float(pd.Series(numbers).median())
                missing = bool(column.isna().any())
                columns.append(Column(name=name, kind="number", median=median, indicator=missing))
            else:
                categories = sorted({*texts_of(column).tolist()} - {""})
                if len(categories) > most:
                    problems.append(
                        f"{named} has {len(categories):,} different texts: {advice}, or raise "
                        f"dataset.max_categories, which is {most}"
                    )
                columns.append(Column(name=name, kind="category", categories=tuple(categories)))
        if problems:
            raise UserError(problems)
        return cls(columns=tuple(columns))

    @property
    def components(self) -> list[str]:
        """The names of the vector's components."""
        return [component for column in self.columns for component in column.components]

    def vectors(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Float32 N x D of the rows of a table, in which other columns are left out.

        Raises:
            UserError: it lacks a column, or has numbers that float32 has not.
        """
        import numpy as np

        if lacking := [column.name for column in self.columns if column.name not in frame]:
            raise UserError(f"the table has no column {listed(lacking)}")
        parts = [column.values(frame[column.name]) for column in self.columns]
        most = np.finfo(np.float32).max
        problems = [
            f"the column '{column.name}' has numbers that are infinite, or too large, in {beyond}"
            for column, part in zip(self.columns, parts, strict=True)
            if (beyond := rows_of(~(np.abs(part) <= most).all(axis=1)))
        ]
        if problems:
            raise UserError(problems)
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")

    def notes(self, frame: pd.DataFrame) -> Iterator[str]:
        """What was done to the rows of a table, a line each."""
        import numpy as np
        import pandas as pd

        numbers = [column for column in self.columns if column.kind == "number"]
        others = [column for column in self.columns if column.kind == "category"]
        yield (
            f"{len(self.components):,} components: {len(numbers):,} columns of numbers, "
            f"{len(others):,} of {sum(len(column.categories) for column in others):,} categories"
        )
        for column in others:
            values = frame[column.name].dropna()
            odd = values[np.isnan(numbers_of(values))]
            if not pd.api.types.is_numeric_dtype(values) and (
                0 < len(odd) <= (1 - MOST_NUMBERS) * len(values)
            ):
                some = listed(repr(str(text)) for text in odd.unique()[:3])
                yield (
                    f"warning: {len(values) - len(odd):,} of {len(values):,} values of the column "
                    f"'{column.name}' are numbers; others, such as {some}, make it categories"
                )
        missing = {
            column.name: int(count)
            for column in numbers
            if (count := frame[column.name].isna().sum())
        }
        if missing:
            yield (
                f"{sum(missing.values()):,} missing numbers are the median of the training rows, "
                f"and marked as missing where training rows are, too: {_counted(missing)}"
            )
        unknown = {
            column.name: int((column.codes(frame[column.name]) < 0).sum()) for column in others
        }
        if any(unknown.values()):
            yield (
                f"{sum(unknown.values()):,} values that are missing, or that no training row has, "
                f"are of no category, all zeros: {_counted(unknown)}"
            )


def numbers_of(column: pd.Series) -> Numbers:
    """The values as float64; NaN where one is missing or no number."""
    import numpy as np
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _holds_times(column: pd.Series) -> bool:
    """Whether a column is of times, or of texts that all are dates as 2024-02-13."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    if pd.api.types.is_numeric_dtype(column):
        return False
    texts = column.dropna().astype(str)
    return len(texts) > 0 and all(DATE.match(text) for text in texts)


def _counted(columns: dict[str, int]) -> str:
    return listed(f"{name} {count:,}" for name, count in columns.items() if count)
