"""Image files that lie in the cells of a table: copied to one file, to be read in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchyard.plugins.datasets.paths import ScratchFile
from torchyard.plugins.datasets.sources.tar import read_extent


@dataclass
class PackedFiles:
    """Contents of files.

    Attributes:
        read: returns the bytes that a reference stands for; can be pickled.
        references: (offset, size) of each; of what is missing, a size of 0.
        paths: what the table says of where each was; "" where it says nothing.
        close: to be called after the last read.
    """

    read: Callable[[Any], bytes]
    references: list[tuple[int, int]]
    paths: list[str]
    close: Callable[[], None]

    @classmethod
    def of(cls, cells: Iterable[Any], folder: Path) -> PackedFiles:
        """Copy the cells to a file in a folder, which is removed by `close`.

        Args:
            cells: bytes, or mappings with `bytes` and perhaps `path`; None: missing.
            folder: for the file.
        """
        scratch = ScratchFile(folder)
        references, paths, offset = [], [], 0
        try:
            with scratch.path.open("wb") as file:
                for cell in cells:
                    given = cell if isinstance(cell, dict) else {"bytes": cell}
                    content = given.get("bytes") or b""
                    references.append((offset, len(content)))
                    paths.append(str(given.get("path") or ""))
                    file.write(content)
                    offset += len(content)
        except BaseException:
            scratch.close()
            raise
        return cls(partial(read_extent, scratch.path), references, paths, scratch.close)
