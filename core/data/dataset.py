"""Data sets before and after preparation: raw splits in, memory-mapped arrays out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchyard.core.data.raw import (
    SampleSpec,
)
from torchyard.core.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Labels: TypeAlias = npt.NDArray[np.int64]
    Samples: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    import torch

    pass


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


# numpy's import, a quarter of a second, waits until an array is touched: every command
# imports this module.


@dataclass(frozen=True)
class Split:
    """One part of a prepared data set.

    Attributes:
        samples: memory map, uint8 N x C x H x W or float32 N x D.
        labels: int64 N.
        indices: which of them belong to the part; None: all. So a part of a split shares
            its memory map.
    """

    samples: Samples
    labels: Labels
    indices: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)


MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PreparedDataset:
    """A data set as `prepare` left it on disk; arrays are opened, not read.

    Attributes:
        folder: where manifest and arrays lie.
        name: the plugin's name.
        classes: the names, in the order of the class indices.
        shape: one sample, (C, H, W) or (D,).
        dtype: "uint8" or "float32".
        mean, std: of the training split, one a channel (images scaled to 0..1) or one a
            vector component.
        counts: samples a split.
        digest: sha256 of arrays, labels and class names.
        source: where the raw data came from.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int] = field(hash=False)
    digest: str
    source: str

    @classmethod
    def open(cls, folder: Path) -> PreparedDataset:
        """Read the manifest; every array must have the size it had when written.

        Raises:
            RunError: the manifest or an array is missing or damaged.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            sizes = manifest.pop("sizes")
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{folder} holds no prepared data: {error}") from error
        damaged = [
            name
            for name, size in sizes.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]
        if damaged:
            raise RunError(
                f"The prepared data in {folder} is damaged ({', '.join(damaged)}); "
                "remove that folder and run again."
            )
        for key in ("classes", "shape", "mean", "std"):
            manifest[key] = tuple(manifest[key])
        return cls(folder=folder, **manifest)

    @property
    def spec(self) -> SampleSpec:
        """The shape of one sample and the number of classes."""
        return SampleSpec(self.shape, len(self.classes))

    @cached_property
    def test_digest(self) -> str:
        """sha256 of the test samples, their labels and the class names; reads them all."""
        pass

        digest = sha256(json.dumps([self.classes, self.shape, self.dtype]).encode())
        digest.update(self.test.labels.astype("<i8").data)
        samples = readable(self.test.samples)
        rows = max(1, (8 << 20) // max(1, samples[:1].nbytes))
        for start in range(0, len(samples), rows):
            digest.update(samples[start : start + rows].data)
        return digest.hexdigest()

    @cached_property
    def train(self) -> Split:
        """The training split."""
        return self._split("train")

    @cached_property
    def test(self) -> Split:
        """The test split."""
        return self._split("test")

    def _split(self, part: str) -> Split:
        import numpy as np

        # Copy-on-write: torch wants a writable array to share, and the file stays as it is.
        return Split(
            np.load(self.folder / f"{part}_samples.npy", mmap_mode="c"),
            np.load(self.folder / f"{part}_labels.npy"),
        )
