"""A prepared data set on disk, and how its samples are read."""

from __future__ import annotations

import json
import os
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torchyard.core.data.files import hold
from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import RunError

# Every command imports this module, so numpy, a quarter of a second, waits until it is needed.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from torchyard.core.data.images.photos import EncodedSamples

    Labels: TypeAlias = npt.NDArray[np.int64]
    Samples: TypeAlias = (
        npt.NDArray[np.uint8] | npt.NDArray[np.float32] | npt.NDArray[np.int64] | EncodedSamples
    )

MANIFEST = "manifest.json"

# A larger memory map is read as a file: an epoch in random order would make all of it resident.
# Up to this size a map is three to five times faster.
MAPPED_BYTES = 256 << 20


# Contents are compared block by block, so that of a large array some can be.
BLOCK_BYTES = 8 << 20
SEAL = "seal"  # in the manifest: the digest of all else in it


def seal(manifest: dict[str, Any]) -> str:
    """The digest of a manifest."""
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def block_sum(file: Path, index: int) -> int:
    """CRC-32 of a block of an array file: against damage, not against people."""
    with file.open("rb", buffering=0) as opened:
        opened.seek(index * BLOCK_BYTES)
        return zlib.crc32(opened.read(BLOCK_BYTES))


def block_sums(file: Path) -> list[int]:
    """CRC-32 of each block of an array file."""
    return [block_sum(file, index) for index in range(-(-file.stat().st_size // BLOCK_BYTES))]


@dataclass(frozen=True)
class Split:
    """The training, validation or test split of a prepared data set, or some samples of it.

    Attributes:
        samples: memory map, uint8 N x C x H x W, float32 N x D or N x C x L, or int64 N x L; of
            image files that are kept encoded, what reads like one.
        labels: int64 N, class indices.
        indices: which of the N samples belong to it; None: all. So a validation split shares
            the memory map of the training split.
        groups: int64 N, which samples belong together; None: none do.
        weights: float64 N, how often each is drawn in proportion to the others; None: alike.
    """

    samples: Samples
    labels: Labels
    indices: npt.NDArray[np.int64] | None = None
    groups: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)

    def class_counts(self, classes: int) -> list[int]:
        """How many of its samples each of so many classes has."""
        import numpy as np

        labels = self.labels if self.indices is None else self.labels[self.indices]
        counts: list[int] = np.bincount(labels, minlength=classes).tolist()
        return counts


@dataclass(frozen=True)
class PreparedDataset:
    """A data set as `prepare_dataset` writes it: memory-mapped arrays, or image files.

    Attributes:
        folder: the folder of the manifest and the arrays.
        name: the plugin's name.
        classes: class names, in the order of the class indices.
        shape: shape of one sample, (C, H, W), (D,), (C, L) or, of token ids, (L,).
        dtype: "uint8", "float32" or "int64".
        mean, std: of the training split: for each channel (of images scaled to 0..1) or each
            vector component; empty for token ids.
        counts: number of samples in each split: "train", "validation" (where the data set has
            one of its own) and "test".
        digest: sha256 of samples, labels and class names.
        source: path or address of the raw data.
        notes: what its user should know, such as files that were left out.
        encoding: how a sample is made of its source, as JSON values; empty: as it is there.
        reading: how its image files were read, as those that a model is asked about later are.
        blocks: CRC-32 of each block of `BLOCK_BYTES` of each file, by its name.
        storage: "arrays", or "encoded" where image files are kept as they are.
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
    notes: tuple[str, ...] = ()
    encoding: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)
    reading: ImageReading = READING
    blocks: dict[str, list[int]] = field(default_factory=dict, hash=False, repr=False)
    storage: str = "arrays"

    @classmethod
    def open(cls, folder: Path) -> PreparedDataset:
        """Read the manifest, and check that every array has the size it was written with.

        Until this process ends, `torchyard prune` leaves the folder alone.

        Raises:
            RunError: the manifest or an array is missing or damaged.
        """
        try:
            hold(folder / MANIFEST)
            manifest = json.loads((folder / MANIFEST).read_bytes())
            sealed = manifest.pop(SEAL, None)
            if sealed not in (None, seal(manifest)):  # older ones have none
                raise ValueError(f"{MANIFEST} is damaged")
            sizes = manifest.pop("sizes")
            damaged = [
                name
                for name, size in sizes.items()
                if not (folder / name).is_file() or (folder / name).stat().st_size != size
            ]
            for key in ("classes", "shape", "mean", "std", "notes"):
                manifest[key] = tuple(manifest.get(key, ()))
            manifest["reading"] = ImageReading.model_validate(manifest.get("reading", {}))
            found = cls(folder=folder, **manifest)
        # A file that something else wrote may hold anything.
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise RunError(f"{folder} holds no prepared data: {error}") from error
        if damaged:
            raise RunError(
                f"The prepared data in {folder} is damaged ({', '.join(damaged)}); "
                "remove that folder and run again."
            )
        return found

    def damaged(self, most: int | None = None) -> list[str]:
        """The array files whose contents are not what was written; all, if that is not known.

        Args:
            most: bytes to read; of larger arrays some blocks, drawn anew each time. None: all.
        """
        blocks = [(name, index) for name, sums in self.blocks.items() for index in range(len(sums))]
        if most is not None and len(blocks) * BLOCK_BYTES > most:
            blocks = random.Random().sample(blocks, most // BLOCK_BYTES)
        if not blocks:
            return ["no checksums"]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            sums = threads.map(lambda block: block_sum(self.folder / block[0], block[1]), blocks)
            return sorted(
                {
                    name
                    for (name, index), found in zip(blocks, sums, strict=True)
                    if found != self.blocks[name][index]
                }
            )

    @property
    def encoded(self) -> bool:
        """Whether image files are kept as they are, and decoded when they are needed."""
        return self.storage == "encoded"

    @property
    def samples(self) -> str:
        """How many there are: "50,000 training, 5,000 validation and 10,000 test samples"."""
        *others, test = (
            f"{count:,} {'training' if part == 'train' else part}"
            for part, count in self.counts.items()
        )
        return f"{', '.join(others)} and {test} samples"

    @property
    def spec(self) -> SampleSpec:
        """The shape and type of one sample, and the number of classes."""
        return SampleSpec(self.shape, len(self.classes), self.dtype)

    @cached_property
    def test_digest(self) -> str:
        """sha256 of the test samples, their labels and the class names; reads all of them.

        Of image files that are kept encoded, of their contents and how they are decoded.
        """
        digest = sha256(json.dumps([self.classes, self.shape, self.dtype]).encode())
        digest.update(self.test.labels.astype("<i8").data)
        if self.encoded:
            from torchyard.core.data.images.photos import photo_files

            digest.update(self.reading.model_dump_json().encode())
            for path in photo_files(self.folder, "test"):
                with path.open("rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        digest.update(block)
            return digest.hexdigest()
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

    @cached_property
    def validation(self) -> Split | None:
        """The data set's own validation split, if it has one."""
        return self._split("validation") if "validation" in self.counts else None

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by their names, in the order of `counts`."""
        return {part: self._split(part) for part in self.counts}

    def _split(self, part: str) -> Split:
        import numpy as np

        annotations = {
            kind: np.load(file)
            for kind in ("groups", "weights")
            if (file := self.folder / f"{part}_{kind}.npy").is_file()
        }
        labels = np.load(self.folder / f"{part}_labels.npy")
        if self.encoded:
            from torchyard.core.data.images.photos import EncodedSamples

            channels, height, width = self.shape
            samples = EncodedSamples(self.folder, part, (channels, height, width), self.reading)
            return Split(samples, labels, **annotations)
        # Copy-on-write: torch shares writable arrays only, and the file must not change.
        samples = np.load(self.folder / f"{part}_samples.npy", mmap_mode="c")
        return Split(samples, labels, **annotations)


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
