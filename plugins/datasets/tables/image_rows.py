"""Images that are rows of a table, in splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchyard import RawData
from torchyard.plugins.datasets.sources.image_form import ImageForm
from torchyard.plugins.datasets.tables.columns import Rows
from torchyard.plugins.datasets.tables.packed import PackedFiles


class ImageRows(ImageForm):
    """Images of one form, a row for each."""

    def listed_data(
        self,
        rows: Rows,
        read: Callable[[Any], bytes],
        references: Sequence[Any],
        names: Sequence[str],
        source: str,
        close: Callable[[], None] | None = None,
    ) -> RawData:
        """The raw data of images that `read` returns the files of, by the rows' references."""
        splits = {
            part: self.image_split(
                read,
                [references[index] for index in indices],
                [names[index] for index in indices],
                rows.labels[indices],
            )
            for part, indices in rows.parts.items()
        }
        return rows.data(splits, source, close=close)

    def image_data(self, rows: Rows, files: PackedFiles, source: str) -> RawData:
        """The raw data of image files that lay in the rows themselves."""
        names = [path or f"{source}, row {row + 1}" for row, path in enumerate(files.paths)]
        return self.listed_data(rows, files.read, files.references, names, source, files.close)
