"""The rows of a large array, read from its file: none of it stays in the process' memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core.errors import RunError

if TYPE_CHECKING:
    import torch

    from core.dataset import Samples

# Up to here a map costs less. A row of 3 KB takes 0.4 to 0.7 microseconds from a map whose pages
# are there, 2.1 from the file. But each row that is touched maps 64 KiB around it: an epoch in
# random order has soon mapped all, and to unmap some now and then takes 4.5 a row.
MAPPED_BYTES = 256 << 20


def readable(samples: Samples) -> Samples | FileRows:
    """The samples themselves, or a large memory map's rows."""
    if isinstance(samples, np.memmap) and samples.nbytes > MAPPED_BYTES:
        return FileRows(samples)
    return samples


def rows_on(samples: Samples, device: torch.device) -> torch.Tensor | FileRows:
    """The samples as a tensor on a device; on the CPU a large memory map's are left in its file."""
    import torch

    rows = readable(samples) if device.type == "cpu" else samples
    return rows if isinstance(rows, FileRows) else torch.from_numpy(rows).to(device)


class FileRows:
    """Rows of an array in a file, as indexing it gives them.

    Args:
        array: a memory map in C order, whose file is read instead.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._row = array[:1].nbytes
        self._start = array.offset
        self._path = Path(str(array.filename))
        self._file = self._path.open("rb", buffering=0)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows of a slice without a step, or those at some places, in a new array.

        Raises:
            RunError: the file has become shorter than it was.
            OSError: it cannot be read.
        """
        if isinstance(chosen, slice):
            first, end, _ = chosen.indices(len(self))
            rows = np.empty((max(0, end - first), *self.shape[1:]), self.dtype)
            self._read(_bytes(rows), first)
            return rows
        rows = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        room, at = _bytes(rows), 0
        for place in chosen.tolist():
            self._read(room[at : at + self._row], place)
            at += self._row
        return rows

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """What `torch.index_select` gives of the array, along its first dimension."""
        import torch

        assert dim == 0
        return torch.from_numpy(self[index.numpy()])

    def _read(self, room: memoryview, first: int) -> None:
        start = self._start + first * self._row
        while room:
            count = os.preadv(self._file.fileno(), [room], start)
            if not count:
                raise RunError(f"The prepared data in {self._path} is damaged: it ends too early.")
            room, start = room[count:], start + count


def _bytes(rows: npt.NDArray[Any]) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data
