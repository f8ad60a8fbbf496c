"""Image files that a prepared data set keeps as they are, read as an array of decoded images.

A split is one file of all its images' contents, one after another, and an index of them. Images
are decoded by threads of this process: the decoders and the scaling release the interpreter's
lock for all but some 5 % of their work, and threads share torch's code and the batch's memory,
which processes would have to load and hand over (`benchmarks/reasons/photos.md`).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from torchyard.core.data.images.decoding import decode_image, decode_part
from torchyard.core.data.images.jpeg import decode_jpeg_part
from torchyard.core.data.images.reading import ImageReading
from torchyard.core.errors import RunError

T = TypeVar("T")

# A row of the index. `plain`: the channels of a JPEG that is upright as it is stored, else 0.
ENTRY = np.dtype(
    [("start", "<i8"), ("size", "<i8"), ("height", "<i4"), ("width", "<i4"), ("plain", "<i4")]
)
MOST_THREADS = 16  # beyond, the share of the work that holds the interpreter's lock shows
TASK = 8  # images of one task at most: a batch ends when its last task does
AHEAD = 2  # batches that are decoded before they are asked for

Part = tuple[int, int, int, int]  # of an image as it is displayed: top, left, height, width


def photo_files(folder: Path, part: str) -> tuple[Path, Path]:
    """Where a split's images are, and their index."""
    return folder / f"{part}_images.bin", folder / f"{part}_index.npy"


def decoding_threads(share: int = 1) -> int:
    """How many threads decode, where `share` processes of this machine do so at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_THREADS, (cores or 1) // share))


@dataclass(frozen=True)
class Wanted(Generic[T]):
    """A batch to decode.

    Attributes:
        indices: of the images.
        parts: of each image; None: the whole images, as they are evaluated.
        tag: given back with the batch.
    """

    indices: Sequence[int] | npt.NDArray[np.int64]
    parts: Sequence[Part] | None
    tag: T


class EncodedSamples:
    """The images of a split: uint8 N x C x H x W, decoded and scaled at every access.

    Only what is asked for is in memory.

    Args:
        folder, part: of the files.
        shape: (C, H, W) of a decoded image.
        reading: how it is decoded; `reading.resize` says how it is scaled.

    Attributes:
        shape, dtype, ndim, nbytes: as if it were an array.
        index: `ENTRY` for each image, a memory map.

    Raises:
        OSError, ValueError: the files cannot be opened.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, folder: Path, part: str, shape: tuple[int, int, int], reading: ImageReading
    ) -> None:
        self._path, index = photo_files(folder, part)
        self.index = np.load(index, mmap_mode="r")
        self._file = self._path.open("rb", buffering=0)
        self._image, self._reading = shape, reading
        self.shape = (len(self.index), *shape)
        self.nbytes = len(self.index) * int(np.prod(shape))
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata: one for each file

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(
        self, chosen: slice | int | np.integer[Any] | Sequence[int] | npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """The images of a slice or at indices, in a new array, or one image.

        Raises:
            RunError: the files are damaged.
            OSError: they cannot be read.
        """
        if isinstance(chosen, (int, np.integer)):
            image: npt.NDArray[np.uint8] = self[[int(chosen)]][0]
            return image
        whole = np.arange(len(self))
        [(pixels, _)] = self.decoded([Wanted(whole[chosen], None, None)])
        return pixels

    def encoded(self, index: int) -> bytes:
        """The contents of one image's file.

        Raises:
            RunError: the file has become shorter.
            OSError: it cannot be read.
        """
        entry = self.index[index]
        data = os.pread(self._file.fileno(), int(entry["size"]), int(entry["start"]))
        if len(data) < entry["size"]:
            raise self._damaged("it ends too early")
        return data

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image as it is displayed."""
        entry = self.index[index]
        return int(entry["height"]), int(entry["width"])

    def decoded(
        self, batches: Iterable[Wanted[T]], threads: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.uint8], T]]:
        """Decode batches ahead of what is asked for, a bounded number of them, in parallel.

        Args:
            batches: taken as they are needed.
            threads: None: as many as fit this machine.

        Yields:
            uint8 n x C x H x W, and the batch's tag.

        Raises:
            RunError: the files are damaged.
            OSError: they cannot be read.
        """
        threads = threads or decoding_threads()
        pending: deque[tuple[npt.NDArray[np.uint8], list[Future[None]], T]] = deque()
        waiting = 0
        with ThreadPoolExecutor(threads, thread_name_prefix="decoder") as executor:
            try:
                for batch in batches:
                    count = len(batch.indices)
                    pixels = np.empty((count, *self._image), np.uint8)
                    task = max(1, min(TASK, -(-count // threads)))
                    futures = [
                        executor.submit(self._decode, pixels, batch, start, start + task)
                        for start in range(0, count, task)
                    ]
                    pending.append((pixels, futures, batch.tag))
                    waiting += count
                    while len(pending) > AHEAD and waiting > 2 * TASK * threads:
                        waiting -= len(pending[0][0])
                        yield _finished(*pending.popleft())
                while pending:
                    yield _finished(*pending.popleft())
            finally:
                executor.shutdown(cancel_futures=True)

    def _decode(
        self, pixels: npt.NDArray[np.uint8], batch: Wanted[T], start: int, end: int
    ) -> None:
        for place in range(start, min(end, len(pixels))):
            index = int(batch.indices[place])
            data = self.encoded(index)
            try:
                if batch.parts is None:
                    pixels[place] = decode_image(data, self._image, True, self._reading)
                else:
                    pixels[place] = self._decode_part(index, data, batch.parts[place])
            except ValueError as error:
                raise self._damaged(f"image {index} of it: {error}") from error

    def _decode_part(self, index: int, data: bytes, part: Part) -> npt.NDArray[np.uint8]:
        size = self.size(index)
        if self.index[index]["plain"] in (self._image[0], 1):
            with contextlib.suppress(ValueError):  # of flaws that Pillow overlooks, too
                return decode_jpeg_part(data, part, size, self._image)
        return decode_part(data, part, size, self._image, self._reading)

    def _damaged(self, reason: str) -> RunError:
        return RunError(
            f"The prepared data in {self._path} is damaged: {reason}; "
            "remove that folder and run again."
        )


def _finished(
    pixels: npt.NDArray[np.uint8], futures: list[Future[None]], tag: T
) -> tuple[npt.NDArray[np.uint8], T]:
    for future in futures:
        future.result()
    return pixels, tag
