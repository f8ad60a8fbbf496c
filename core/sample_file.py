"""The array file of a split: written in parts, read back in parts, never held whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 8 << 20


@dataclass
class SampleFile:
    """An .npy file of all samples of a split, written part by part.

    Attributes:
        path: where it lies.
        shape: one sample.
        dtype: uint8 or float32.
        count: how many samples it has room for.
        offset: bytes before the first sample.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        with self.path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file,
                {
                    "descr": np.lib.format.dtype_to_descr(self.dtype),
                    "fortran_order": False,
                    "shape": (self.count, *self.shape),
                },
            )
            self.offset = file.tell()
            file.truncate(self.offset + self.count * self.sample_bytes)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def chunk(self) -> int:
        """How many samples to hold in memory at once."""
        return max(1, CHUNK_BYTES // self.sample_bytes)

    def write(self, start: int, samples: npt.NDArray[Any]) -> None:
        """Put samples in their places from `start` on.

        Written, not mapped: a full disk is an OSError here, and a fatal signal in a map.
        """
        with self.path.open("r+b") as file:
            file.seek(self.offset + start * self.sample_bytes)
            file.write(np.ascontiguousarray(samples, dtype=self.dtype).data)

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """Read the samples back, chunk by chunk."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while data := file.read(self.chunk * self.sample_bytes):
                yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape)


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
