"""A table in a file: CSV, Parquet or Feather, found out by what is in it."""

from __future__ import annotations

import gzip
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard import UserError

if TYPE_CHECKING:
    import pandas as pd

GZIP = b"\x1f\x8b"
PARQUET, FEATHER = (b"PAR1",), (b"ARROW1", b"FEA1")
OTHERS = {
    b"PK\x03\x04": "a .zip archive or a spreadsheet: save it as CSV or Parquet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as CSV or Parquet",
    b"BZh": "packed by bzip2: unpack it, or pack it as .csv.gz",
    b"\xfd7zXZ": "packed by xz: unpack it, or pack it as .csv.gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it, or pack it as .csv.gz",
    b"version https://git-lfs": "what stands for a file of Git LFS: fetch it with `git lfs pull`",
    b"<": "a page of HTML or XML, no table: save it as CSV or Parquet",
    b"{": "JSON: save it as CSV or Parquet",
    b"[": "JSON: save it as CSV or Parquet",
}
INDEX = "__index_level_"  # pandas' name in Parquet and Feather for an index that has none
DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"\s*[+-]?(\d+(,\d*)?|,\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)
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
        self._packed = first.startswith(GZIP)
        if self._packed:
            with _readable(path), gzip.open(path) as file:
                first = file.read(FIRST_BYTES)
        if not first.strip():
            raise UserError(f"{path} is empty")
        for magic, other in OTHERS.items():
            if first.startswith(magic):
                raise UserError(f"{path} is {other}")
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
                # All columns: with `usecols` pandas is silent about rows that are too long.
                frame = pd.read_csv(
                    **self._csv(),
                    dtype=dict.fromkeys(texts, str),
                    na_values={
                        name: [""] if name in texts else [*MISSING] for name in self.columns
                    },
                    nrows=rows,
                    index_col=False,  # not the first of too many
                    low_memory=False,  # one type for a whole column
                )[list(columns)]
                if self._delimiter == ";":
                    _read_decimal_commas(frame, texts)
            else:
                frame = _plain(self._arrow(list(columns), rows)).to_pandas(ignore_metadata=True)
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
                header = pd.read_csv(**self._csv(), header=None, nrows=1, dtype=str, na_values=[""])
                names = header.iloc[0].dropna().tolist()
            elif self._form == "feather":
                names = self._arrow(None, 1).schema.names
            else:
                names = self._parquet().schema_arrow.names
            return [str(name) for name in names if not str(name).startswith(INDEX)]

    def _arrow(self, columns: list[str] | None, rows: int | None) -> Any:
        """Some columns, None for all, and some rows, as pyarrow has them."""
        if self._form == "feather":
            from pyarrow import feather

            return feather.read_table(self.path, columns, memory_map=True)
        if rows is not None:
            from pyarrow import Table

            for batch in self._parquet().iter_batches(batch_size=rows, columns=columns):
                return Table.from_batches([batch])
        return self._parquet().read(columns)

    def _parquet(self) -> Any:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self.path)

    def _csv(self) -> dict[str, Any]:
        return {
            "filepath_or_buffer": self.path,
            "sep": self._delimiter,
            "compression": "gzip" if self._packed else None,
            "encoding": "utf-8-sig",
            "skipinitialspace": True,
            "keep_default_na": False,
        }


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a damaged table raises into one line."""
    from pandas.errors import ParserWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)
            yield
    except ParserWarning:
        raise UserError(f"{path}: its rows have more cells than its header has names") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it in that encoding") from error
    except UserError:  # it is a ValueError
        raise
    except (ValueError, OSError, EOFError) as error:  # pandas' own errors, and pyarrow's, are such
        reason = str(error).strip().partition("\n")[0]
        reason = reason.removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path} cannot be read as a table: {reason}") from error


def _delimiter(first: bytes) -> str:
    """Of those that are usual, the one that the first line has most of."""
    line = re.sub('"[^"]*"', "", first.decode("utf-8", "replace")).lstrip().partition("\n")[0]
    return max(DELIMITERS, key=line.count)


def _read_decimal_commas(frame: pd.DataFrame, texts: Sequence[str]) -> None:
    """Read "0,5" as a number, where all of a column is written so; pandas left it as a text."""
    import pandas as pd

    for name in frame.columns.difference([*texts]):
        column = frame[name]
        if not pd.api.types.is_numeric_dtype(column):
            present = column.dropna().astype(str)
            if present.map(lambda text: DECIMAL_COMMA.fullmatch(text) is not None).all():
                frame[name] = pd.to_numeric(column.str.replace(",", "."))


def _plain(table: Any) -> Any:
    """An arrow table with decimals as floats and dates as times, as pandas has no type for them.

    Raises:
        UserError: columns hold what is neither a number nor a text nor a time.
    """
    import pyarrow as pa

    problems = []
    for index, column in enumerate(table.schema):
        kind = column.type
        if pa.types.is_decimal(kind):
            table = table.set_column(index, column.name, table[index].cast(pa.float64()))
        elif pa.types.is_date(kind):
            table = table.set_column(index, column.name, table[index].cast(pa.timestamp("ms")))
        elif pa.types.is_nested(kind) or any(is_other(kind) for is_other in _others()):
            problems.append(
                f"the column '{column.name}' holds {kind}, neither numbers nor texts: leave it "
                f"out (dataset.ignore=[{column.name}])"
            )
    if problems:
        raise UserError(problems)
    return table


def _others() -> list[Callable[[Any], bool]]:
    from pyarrow import types

    binary = [types.is_binary, types.is_large_binary, types.is_binary_view]
    return [*binary, types.is_fixed_size_binary, types.is_time, types.is_duration]
