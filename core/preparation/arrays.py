"""Array files and their mean and standard deviation, chunk by chunk: never wholly in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 8 << 20


@dataclass
class SampleFile:
    """An .npy file of all samples of a split; it has its full size from the start.

    Attributes:
        path: of the file.
        shape: shape of one sample.
        dtype: uint8, float32 or int64.
        count: number of samples.
        offset: bytes before the first sample.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.count, *self.shape)
        self.offset = np.lib.format.open_memmap(self.path, "w+", self.dtype, shape).offset

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def chunk(self) -> int:
        """Number of samples to hold in memory at once."""
        return max(1, CHUNK_BYTES // self.sample_bytes)

    def write(self, start: int, samples: npt.NDArray[Any]) -> None:
        """Write samples from index `start` on.

        Written, not mapped: a full disk is an OSError here, but a fatal signal in a memory map.

        Raises:
            OSError: the disk is full, or fails.
        """
        with self.path.open("r+b") as file:
            file.seek(self.offset + start * self.sample_bytes)
            file.write(np.ascontiguousarray(samples, dtype=self.dtype).data)

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Keep the samples of these sorted indices, in a file of the same name.

        Raises:
            OSError: the disk is full, or fails.
        """
        whole = np.load(self.path, mmap_mode="r")
        self.path.unlink()  # the map stays
        kept = SampleFile(self.path, self.shape, self.dtype, len(rows))
        for start in range(0, len(rows), kept.chunk):
            kept.write(start, whole[rows[start : start + kept.chunk]])
        self.count = kept.count

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """Read the samples back, chunk by chunk."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while data := file.read(self.chunk * self.sample_bytes):
                yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape)


class ImageStatistics:
    """Mean and standard deviation of each channel, of uint8 N x C x H x W scaled to 0..1.

    The sums are integers: exact, and ten times as fast as in float64.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Any = 0
        self._squares: Any = 0

    def add(self, samples: npt.NDArray[np.uint8]) -> None:
        """Add a chunk of N x C x H x W."""
        pixels = samples.reshape(len(samples), samples.shape[1], -1)
        self._count += pixels.shape[0] * pixels.shape[2]
        self._sum += pixels.sum(axis=(0, 2), dtype=np.int64)
        self._squares += np.einsum("nci,nci->c", pixels, pixels, dtype=np.int64, casting="unsafe")

    def merge(self, others: ImageStatistics) -> None:
        """Take in what other samples have added up to."""
        self._count += others._count
        self._sum += others._sum
        self._squares += others._squares

    def result(self) -> tuple[list[float], list[float]]:
        """Mean and (population) standard deviation of each channel."""
        sums = [int(value) for value in self._sum]
        squares = [int(value) for value in self._squares]
        # n * sum(x^2) - sum(x)^2 in integers: no cancellation, so a constant channel gives 0.
        return (
            [total / self._count / 255 for total in sums],
            [
                (self._count * square - total**2) ** 0.5 / self._count / 255
                for total, square in zip(sums, squares, strict=True)
            ],
        )


class VectorStatistics:
    """Mean and standard deviation of each component of float32 N x D, in float64.

    Of float32 N x C x L they are those of each channel.

    Chunks are merged by the pairwise formula of Chan, Golub and LeVeque, "Updating Formulae
    and a Pairwise Algorithm for Computing Sample Variances" (1979), equation 2.1.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._deviations: Any = 0.0  # sum of squared deviations from the mean

    def add(self, samples: npt.NDArray[np.float32]) -> None:
        """Add a chunk of N x D or N x C x L."""
        values = samples.astype(np.float64)
        if values.ndim == 3:
            values = values.swapaxes(1, 2).reshape(-1, values.shape[1])
        count, mean = len(values), values.mean(axis=0)
        total = self._count + count
        difference = mean - self._mean
        self._deviations += ((values - mean) ** 2).sum(axis=0)
        self._deviations += difference**2 * (self._count * count / total)
        self._mean = self._mean + difference * (count / total)
        self._count = total

    def result(self) -> tuple[list[float], list[float]]:
        """Mean and (population) standard deviation of each component."""
        deviation = np.sqrt(self._deviations / self._count)
        return self._mean.tolist(), deviation.tolist()
