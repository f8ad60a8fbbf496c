"""A table in a file: CSV, Parquet or Feather, found out by what is in it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard import UserError

if TYPE_CHECKING:
    import pandas as pd

GZIP = b"\x1f\x8b"  # pandas reads a .gz by its suffix
PARQUET, FEATHER = (b"PAR1",), (b"ARROW1", b"FEA1")
OTHERS = {b"PK\x03\x04": "a .zip archive or a spreadsheet", b"\xd0\xcf\x11\xe0": "a spreadsheet"}
INDEX = "__index_level_"  # pandas' name in Parquet and Feather for an index that has none
DELIMITERS = ",;\t|"
FIRST_BYTES = 1 << 16
# What stands for a missing value in a CSV file, but for labels, names and paths.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")


class TableFile:
    """A table, of which columns are read when they are asked for.

    Args:
        path: of the file.

    Attributes:
        columns: their names, but for an index without one, as pandas writes it.

    Raises:
        UserError: it is no table, is empty, or two columns have one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} is no file: name a CSV, Parquet or Feather file")
        with path.open("rb") as file:
            first = file.read(FIRST_BYTES)
        if first.startswith(GZIP):
            with _readable(path), gzip.open(path) as file:
                first = file.read(FIRST_BYTES)
        for magic, other in OTHERS.items():
            if first.startswith(magic):
                raise UserError(f"{path} is {other}: save it as CSV or Parquet")
        self._form = "csv"
        if first.startswith((*PARQUET, *FEATHER)):
            self._form = "parquet" if first.startswith(PARQUET) else "feather"
        else:
            self._delimiter = _delimiter(first)
        self.columns = self._names()
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise UserError(f"{path}: several columns are named {', '.join(twice)}")

    def read(
        self, columns: Sequence[str], texts: Sequence[str] = (), rows: int | None = None
    ) -> pd.DataFrame:
        """Some columns.

        Args:
            columns: their names.
            texts: those of them that are texts even if they look like numbers ("007").
            rows: how many to read; None: all.

        Raises:
            UserError: the file is damaged.
        """
        import pandas as pd

        frame: pd.DataFrame
        with _readable(self.path):
            if self._form == "csv":
                frame = pd.read_csv(
                    **self._csv(),
                    usecols=list(columns),
                    dtype=dict.fromkeys(texts, str),
                    keep_default_na=False,
                    na_values={name: [""] if name in texts else list(MISSING) for name in columns},
                    nrows=rows,
                    low_memory=False,  # one type for a whole column
                )
            else:
                frame = self._arrow(list(columns), rows).to_pandas(ignore_metadata=True)
        return frame

    def holds_files(self, column: str) -> bool:
        """Whether the cells of a column are the contents of files, as Parquet can have them."""
        from pyarrow import types

        if self._form != "parquet":
            return False
        kind = self._parquet().schema_arrow.field(column).type
        if types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def cells(self, column: str, at_once: int = 64) -> Iterator[Any]:
        """The values of a Parquet column, one after another: never all of them in memory."""
        with _readable(self.path):
            for batch in self._parquet().iter_batches(batch_size=at_once, columns=[column]):
                yield from batch.column(0).to_pylist()

    def _names(self) -> list[str]:
        with _readable(self.path):
            if self._form == "csv":
                import pandas as pd

                # As a row, so that pandas does not rename the second of two.
                header = pd.read_csv(**self._csv(), header=None, nrows=1, dtype=str)
                names = header.iloc[0].dropna().tolist()
            else:
                names = self._arrow(None, 1).schema.names
            return [str(name) for name in names if not str(name).startswith(INDEX)]

    def _arrow(self, columns: list[str] | None, rows: int | None) -> Any:
        """Some columns, None for all, and some rows, as pyarrow has them."""
        if self._form == "feather":
            from pyarrow import feather

            return feather.read_table(self.path, columns, memory_map=True)
        if rows is None:
            return self._parquet().read(columns)
        return next(self._parquet().iter_batches(batch_size=rows, columns=columns))

    def _parquet(self) -> Any:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self.path)

    def _csv(self) -> dict[str, Any]:
        return {
            "filepath_or_buffer": self.path,
            "sep": self._delimiter,
            "encoding": "utf-8-sig",
            "skipinitialspace": True,
        }


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a damaged table raises into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it in that encoding") from error
    except (ValueError, OSError, EOFError) as error:  # pandas' own errors, and pyarrow's, are such
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} cannot be read as a table: {reason}") from error


def _delimiter(first: bytes) -> str:
    """Of those that are usual, the one that the first line has most of."""
    line = re.sub('"[^"]*"', "", first.decode("utf-8", "replace").partition("\n")[0])
    return max(DELIMITERS, key=line.count)
