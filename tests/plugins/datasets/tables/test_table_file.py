"""Tables of every form, and files that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from torchyard import UserError
from torchyard.plugins.datasets.tables.table_file import TableFile


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv_files_as_programs_write_them(tmp_path: Path, delimiter: str, start: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(f'{start}a{delimiter} "b, c"\r\n1{delimiter}x\r\nNA{delimiter}NA\r\n', "utf-8")
    table = TableFile(path)
    assert table.columns == ["a", "b, c"]
    frame = table.read(["b, c", "a"], ["b, c"])
    assert frame["b, c"].tolist() == ["x", "NA"]
    assert frame["a"].isna().tolist() == [False, True]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv"])
def test_a_compressed_csv_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"a;b\n1;2\n"))
    assert TableFile(tmp_path / name).read(["b"])["b"].tolist() == [2]


def test_a_table_as_spreadsheets_write_it_where_a_comma_is_the_point(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"a, in\nmm";b;c\n0,5;1,2;1,x\n-1;;2,5\n', "utf-8")
    frame = TableFile(path).read(["a, in\nmm", "b", "c"], ["b"])
    assert frame["a, in\nmm"].tolist() == [0.5, -1]
    assert frame["b"].tolist()[0] == "1,2"  # asked for as a text
    assert frame["c"].tolist() == ["1,x", "2,5"]


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    pd.DataFrame({"a": []}).to_parquet(tmp_path / "t.parquet")
    assert TableFile(tmp_path / "t.parquet").read(["a"], rows=1).empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", " is empty"),
        (b"BZh9etc", "is packed by bzip2: unpack it, or pack it as .csv.gz"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch it with `git lfs pull`"),
        (b'[{"a": 1}]', "is JSON: save it as CSV or Parquet"),
        (b"a,b\nrow1,1,2\nrow2,1,2\n", "its rows have more cells than its header has names"),
        (b"a,b\n1,2\n1,2,3\n", "cannot be read as a table: Expected 2 fields in line 3, saw 3"),
        (b"PK\x03\x04etc", "is a .zip archive or a spreadsheet: save it as CSV or Parquet"),
        (b"PAR1 and so on", "cannot be read as a table: "),
        (b"ARROW1 and so on", "cannot be read as a table: "),
        ("a,b\né,1\n".encode("latin-1"), "is not UTF-8: save it in that encoding"),
        (b"a,b,a\n1,2,3\n", ": several columns are named a"),
        (b'a,b\n1,"2\n', "cannot be read as a table: "),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        (table := TableFile(path)).read(table.columns)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}")
    assert message in problem


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file: name a CSV"):
        TableFile(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
@pytest.mark.parametrize("name", [None, "id"])
def test_the_index_that_pandas_writes(tmp_path: Path, kind: str, name: str | None) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}, index=[4, 5, 6]).iloc[1:]
    frame.index.name = name
    path = tmp_path / f"t.{kind}"
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet, "feather": frame.to_feather}[kind]
    write(path)  # type: ignore[operator]
    table = TableFile(path)
    assert sorted(table.columns) == ["a", "b", *filter(None, [name])]
    assert table.read(table.columns)["a"].tolist() == [2, 3]
    assert table.read(["b"], rows=1)["b"].tolist()[:1] == ["y"]
