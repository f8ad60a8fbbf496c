"""The image files of a split, packed into one file with an index, in memory of constant size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchyard.core.data.images.photos import ENTRY, photo_files
from torchyard.core.preparation.arrays import CHUNK_BYTES, ImageStatistics


@dataclass
class PhotoPack:
    """The files that `EncodedSamples` reads, while they are written.

    Attributes:
        folder, part: of the files.
        statistics: of the images as they are evaluated.
        count: images so far.
    """

    folder: Path
    part: str
    statistics: ImageStatistics = field(default_factory=ImageStatistics)
    count: int = 0
    _end: int = 0

    def __post_init__(self) -> None:
        self._images, self._index = photo_files(self.folder, self.part)
        self._contents = self._images.open("wb")
        self._entries = self._index.open("w+b")
        self._entries.write(_header(0))

    def add(self, contents: bytes, measures: tuple[int, int, int]) -> None:
        """Append an image: its file's contents, and what `image_file.measure` says of it.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._contents.write(contents)
        entry = np.array((self._end, len(contents), *measures), ENTRY)
        self._entries.write(entry.tobytes())
        self._end += len(contents)
        self.count += 1

    def finish(self) -> None:
        """Close the files.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._contents.close()
        self._entries.seek(0)
        self._entries.write(_header(self.count))
        self._entries.close()

    def chunks(self) -> Iterator[memoryview]:
        """Read images and index back, chunk by chunk."""
        for path in (self._images, self._index):
            with path.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    yield memoryview(data)

    def smaller(self, height: int, width: int) -> int:
        """How many images are smaller than this in height or width."""
        index = np.load(self._index, mmap_mode="r")
        return int(((index["height"] < height) | (index["width"] < width)).sum())


def _header(count: int) -> bytes:
    """The beginning of an .npy file, of the same length for every number of rows."""
    file = io.BytesIO()
    layout = {"descr": ENTRY.descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, layout)
    return file.getvalue()
