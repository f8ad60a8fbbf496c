"""The data set `table`: the rows of a table as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt, field_validator

from torchyard import ArraySplit, RawData, Register, UserError, hookimpl
from torchyard.plugins.datasets.paths import ExistingPath, state_of
from torchyard.plugins.datasets.tables.columns import USUAL, Rows, RowSettings, no_column
from torchyard.plugins.datasets.tables.encoding import Encoding
from torchyard.plugins.datasets.tables.table_file import TableFile

if TYPE_CHECKING:
    import pandas as pd


class VectorSettings(RowSettings):
    """The columns that vectors are made of."""

    features: tuple[str, ...] | None = Field(
        None, description="columns to learn from; none: all but those named otherwise"
    )
    ignore: tuple[str, ...] = Field((), description="columns to leave out")
    categorical: tuple[str, ...] = Field(
        (), description="columns of numbers that are categories all the same, such as codes"
    )
    max_categories: PositiveInt = Field(
        100, description="refuse a column of more different texts: names, identifiers"
    )

    @field_validator("features", "ignore", "categorical", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def features_in(self, names: Sequence[str], columns: dict[str, str]) -> list[str]:
        """The columns to learn from, in the table's order.

        Args:
            names: of all columns.
            columns: those with a role.

        Raises:
            UserError: one is not there, or none is left.
        """
        problems = [
            no_column(role, name, names)
            for role in ("features", "ignore", "categorical")
            for name in getattr(self, role) or ()
            if name not in names
        ]
        used = {name: role for role, name in columns.items()}
        problems += [
            f"dataset.features: the column '{name}' is the {used[name]}"
            for name in self.features or ()
            if name in used
        ]
        wanted: Sequence[str] = self.features or ()
        if self.features is None:  # which part a row was in says nothing about it
            wanted = [name for name in names if name.strip().casefold() not in USUAL["split"]]
        left_out = {*used, *self.ignore}
        features = [name for name in names if name in wanted and name not in left_out]
        if not features and not problems:
            problems = ["no column is left to learn from"]
        if problems:
            raise UserError(problems)
        return features

    def encoded(self, rows: Rows, samples: pd.DataFrame, source: str) -> RawData:
        """The rows as vectors, float32 N x D.

        Args:
            rows: what is known of them.
            samples: the columns to learn from.
            source: path or address, recorded with each run.

        Raises:
            UserError: with every column that cannot be encoded.
        """
        train = samples.iloc[rows.parts["train"]]
        encoding = Encoding.fitted(train, self.categorical, self.max_categories)
        vectors = encoding.vectors(samples)
        splits = {
            part: ArraySplit(vectors[indices], rows.labels[indices])
            for part, indices in rows.parts.items()
        }
        return rows.data(
            splits,
            source,
            notes=encoding.notes(samples),
            encoding=encoding.model_dump(mode="json", exclude_defaults=True),
        )


class Table(VectorSettings):
    """Numbers and categories in a table: CSV, Parquet or Feather, a row per sample.

    Numbers stay as they are, and the network's first layer standardizes them; a missing one is
    the median, and marked. Texts are categories: a component each, 1 or 0. Medians and categories
    are those of the training rows. They are kept with the logged model, for serving.
    """

    path: ExistingPath = Field(description="the file: CSV, Parquet or Feather")

    def build(self, downloads: Path) -> RawData:
        """Encode the rows as float32 N x D.

        Raises:
            UserError: columns are missing or cannot be encoded, labels cannot be, or a group
                would be divided.
        """
        table = TableFile(self.path)
        columns = self.columns_in(table.columns)
        features = self.features_in(table.columns, columns)
        texts = [name for role, name in columns.items() if role not in ("weight", "time")]
        frame = table.read([*dict.fromkeys([*features, *columns.values()])], texts)
        return self.encoded(Rows.of(frame, columns, self), frame[features], str(self.path))

    def fingerprint(self) -> str:
        """Path, size and modification time of the table."""
        return state_of([self.path])


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `table`."""
    register("table", Table)
