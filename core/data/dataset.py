"""A prepared data set on disk, and how its samples are read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import RunError

# Every command imports this module, so numpy, a quarter of a second, waits until it is needed.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Labels: TypeAlias = npt.NDArray[np.int64]
    Samples: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

MANIFEST = "manifest.json"

# A larger memory map is read as a file: an epoch in random order would make all of it resident.
# Up to this size a map is three to five times faster.
MAPPED_BYTES = 256 << 20


@dataclass(frozen=True)
class Split:
    """The training or the test split of a prepared data set, or some samples of it.

    Attributes:
        samples: memory map, uint8 N x C x H x W or float32 N x D.
        labels: int64 N, class indices.
        indices: which of the N samples belong to it; None: all. So a validation split shares
            the memory map of the training split.
    """

    samples: Samples
    labels: Labels
    indices: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)


@dataclass(frozen=True)
class PreparedDataset:
    """A data set as `prepare_dataset` writes it; its arrays are memory-mapped.

    Attributes:
        folder: the folder of the manifest and the arrays.
        name: the plugin's name.
        classes: class names, in the order of the class indices.
        shape: shape of one sample, (C, H, W) or (D,).
        dtype: "uint8" or "float32".
        mean, std: of the training split: for each channel (of images scaled to 0..1) or each
            vector component.
        counts: number of samples in each split.
        digest: sha256 of samples, labels and class names.
        source: path or address of the raw data.
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
        """Read the manifest, and check that every array has the size it was written with.

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
        """sha256 of the test samples, their labels and the class names; reads all of them."""
        digest = sha256(json.dumps([self.classes, self.shape, self.dtype]).encode())
        digest.update(self.test.labels.astype("<i8").data)
        samples = rows_of(self.test.samples)
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

        # Copy-on-write: torch shares writable arrays only, and the file must not change.
        return Split(
            np.load(self.folder / f"{part}_samples.npy", mmap_mode="c"),
            np.load(self.folder / f"{part}_labels.npy"),
        )


def rows_of(samples: Samples) -> Samples | FileRows:
    """The samples themselves; for a large memory map, its rows read from the file."""
    import numpy as np

    if isinstance(samples, np.memmap) and samples.nbytes > MAPPED_BYTES:
        return FileRows(samples)
    return samples


def rows_on(samples: Samples, device: torch.device) -> torch.Tensor | FileRows:
    """The samples as a tensor on a device; on the CPU, a large memory map stays in its file."""
    import torch

    rows = rows_of(samples) if device.type == "cpu" else samples
    return rows if isinstance(rows, FileRows) else torch.from_numpy(rows).to(device)


class FileRows:
    """Rows of an array in a file, read at every access: none stays in memory.

    Args:
        array: a memory map in C order; its file is read instead.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._row_bytes = array[:1].nbytes
        self._offset = array.offset
        self._path = Path(str(array.filename))
        self._file = self._path.open("rb", buffering=0)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows of a slice without a step, or at the given indices, in a new array.

        Raises:
            RunError: the file has become shorter.
            OSError: it cannot be read.
        """
        import numpy as np

        if isinstance(chosen, slice):
            first, end, _ = chosen.indices(len(self))
            rows = np.empty((max(0, end - first), *self.shape[1:]), self.dtype)
            self._read(first, _bytes(rows))
            return rows
        rows = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        buffer, size = _bytes(rows), self._row_bytes
        for position, index in enumerate(chosen.tolist()):
            self._read(index, buffer[position * size : (position + 1) * size])
        return rows

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """`torch.index_select` along the first dimension."""
        import torch

        assert dim == 0
        return torch.from_numpy(self[index.numpy()])

    def _read(self, first: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from row `first` on."""
        start = self._offset + first * self._row_bytes
        while buffer:
            count = os.preadv(self._file.fileno(), [buffer], start)
            if not count:
                raise RunError(f"The prepared data in {self._path} is damaged: it ends too early.")
            buffer, start = buffer[count:], start + count


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view("u1").data
