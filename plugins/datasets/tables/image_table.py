"""The data set `image_table`: the user's own images, which a table lists or holds."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from torchyard import RawData, Register, SampleSpec, UserError, hookimpl
from torchyard.plugins.datasets.paths import ExistingPath, state_of
from torchyard.plugins.datasets.sources.folder import read_file
from torchyard.plugins.datasets.sources.formats import open_source
from torchyard.plugins.datasets.sources.source import cleaned
from torchyard.plugins.datasets.tables.columns import AUTO, Rows, RowSettings, rows_of
from torchyard.plugins.datasets.tables.division import listed
from torchyard.plugins.datasets.tables.image_rows import ImageRows
from torchyard.plugins.datasets.tables.packed import PackedFiles
from torchyard.plugins.datasets.tables.table_file import TableFile

if TYPE_CHECKING:
    import pandas as pd


class ImageTable(ImageRows, RowSettings):
    """Images in a table: CSV, Parquet or Feather, a row per image with its path and its label.

    A Parquet file may hold the images themselves. The test part is what a column says, or the
    newest rows, or drawn: a fraction of each class, or a fold, with groups kept together.
    """

    path: ExistingPath = Field(description="the file: CSV, Parquet or Feather")
    image: str = Field(
        AUTO, description="column of the paths, or of a Parquet file's image files; auto: image, …"
    )
    root: ExistingPath | None = Field(
        None, description="folder or archive that paths start from; none: the table's folder"
    )

    def build(self, downloads: Path) -> RawData:
        """List the images, to be decoded later.

        Raises:
            UserError: columns or files are missing, labels cannot be, or a group would be divided.
        """
        table = TableFile(self.path)
        columns = self.columns_in(table.columns, image=self.image)
        inside = table.holds_files(columns["image"])
        wanted = [name for role, name in columns.items() if role != "image" or not inside]
        texts = [name for role, name in columns.items() if role not in ("weight", "time")]
        frame = table.read([*dict.fromkeys(wanted)], texts)
        problems = [] if inside else self._problems(frame[columns["image"]])
        try:
            rows = Rows.of(frame, columns, self)
        except UserError as error:
            raise UserError([*error.problems, *problems]) from None
        if problems:
            raise UserError(problems)
        if inside:
            files = PackedFiles.of(table.cells(columns["image"]), downloads)
            return self.image_data(rows, files, str(self.path))
        return self._listed(rows, frame[columns["image"]].astype(str).tolist(), downloads)

    def describe(self) -> SampleSpec | None:
        """The shape, from the parameters and the first image."""
        return self.form_of(self._first_image)

    def fingerprint(self) -> str:
        """Path, size and modification time of the table, and of every file that it lists."""
        state = hashlib.sha256(state_of([self.path]).encode())
        if self._root.is_file():
            state.update(state_of([self._root]).encode())
            return state.hexdigest()
        try:
            paths = self._paths()
        except UserError:  # `build` reports it
            return state.hexdigest()
        for path in paths:
            try:
                status = os.stat(os.path.join(self._root, path))  # noqa: PTH116, PTH118 (many)
            except (OSError, ValueError):
                continue
            state.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return state.hexdigest()

    @property
    def _root(self) -> Path:
        return self.root or self.path.parent

    def _paths(self, rows: int | None = None) -> list[str]:
        """The paths in the table; none where it holds the images."""
        table = TableFile(self.path)
        column = self.columns_in(table.columns, image=self.image)["image"]
        if table.holds_files(column):
            return []
        return [str(path) for path in table.read([column], [column], rows)[column].dropna()]

    def _first_image(self) -> Any:
        if paths := self._paths(rows=1):
            return read_file(self._root, paths[0])
        table = TableFile(self.path)
        column = self.columns_in(table.columns, image=self.image)["image"]
        cell = next(table.cells(column, at_once=1))
        return cell["bytes"] if isinstance(cell, dict) else cell

    def _problems(self, paths: pd.Series) -> list[str]:
        """Rows without a path, and files that are missing in the folder."""
        if unnamed := rows_of(paths.isna().to_numpy()):
            return [f"the column '{paths.name}' names no image in {unnamed}"]
        names = self._names(paths.astype(str).tolist()) if self._root.is_dir() else []
        return self._missing([name for name in names if not _is_file(name)], len(paths))

    def _names(self, paths: list[str]) -> list[str]:
        return [os.path.join(self._root, path) for path in paths]  # noqa: PTH118 (many)

    def _missing(self, names: list[str], total: int) -> list[str]:
        return [
            f"{len(names):,} of {total:,} images are missing: {listed(names)}; paths start from "
            f"{self._root} (dataset.root)"
        ] * bool(names)

    def _listed(self, rows: Rows, paths: list[str], downloads: Path) -> RawData:
        """The images of a folder or an archive."""
        names, origin = self._names(paths), str(self.path)
        if self._root.is_dir():
            return self.listed_data(rows, partial(read_file, self._root), paths, names, origin)
        source = open_source(self._root, downloads)
        try:
            inner = [cleaned(path) for path in paths]
            lacking = [name for name in inner if name not in source.files]
            if problems := self._missing(lacking, len(paths)):
                raise UserError(problems)
        except BaseException:
            if source.close:
                source.close()
            raise
        references = [source.files[name] for name in inner]
        return self.listed_data(rows, source.read, references, names, origin, source.close)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (of hundreds of thousands)
    except (OSError, ValueError):
        return False


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `image_table`."""
    register("image_table", ImageTable)
