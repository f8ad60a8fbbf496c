"""Data sets before and after preparation: raw splits in, memory-mapped arrays out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from core.errors import RunError

# numpy's import, a quarter of a second, waits until an array is touched: every command
# imports this module.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Labels: TypeAlias = npt.NDArray[np.int64]
    Samples: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class SampleSpec:
    """What a model must fit.

    Attributes:
        shape: one sample: (C, H, W) for images, (D,) for vectors.
        num_classes: how many classes there are; None where that is not known yet.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None


@dataclass(frozen=True)
class ArraySplit:
    """Samples that are arrays already.

    Attributes:
        samples: uint8 N x C x H x W, or float32 N x D.
        labels: N class indices.
    """

    samples: npt.NDArray[Any]
    labels: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class EncodedSplit:
    """Images still encoded as files; `prepare` decodes them in parallel.

    Attributes:
        read: gives the bytes of one reference; must pickle, it is sent to the decoders.
        references: what `read` takes, one an image.
        names: what a message calls each image, usually its path.
        labels: N class indices.
        shape: (C, H, W) to decode to; C = 1 is grey, 3 is RGB.
        resize: whether an image of another size is scaled to H x W, or is an error.
        size_advice: what such an error's message advises.
    """

    read: Callable[[Any], bytes]
    references: Sequence[Any]
    names: Sequence[str]
    labels: npt.NDArray[np.integer[Any]]
    shape: tuple[int, int, int]
    resize: bool = True
    size_advice: str = ""


@dataclass(frozen=True)
class SampleSplit:
    """Samples that come one by one, each an array and its class index.

    Attributes:
        samples: iterable of (uint8 C x H x W or float32 D, class index).
        count: how many there are.
    """

    samples: Iterable[tuple[npt.ArrayLike, int]]
    count: int


RawSplit = ArraySplit | EncodedSplit | SampleSplit


@dataclass(frozen=True)
class RawData:
    """What a data-set plugin builds.

    Attributes:
        classes: the names, in the order of the class indices.
        train: the training split.
        test: the test split.
        source: where the data came from, for the record: a path or an address.
        close: called once the splits are read or given up: removes temporary files.
    """

    classes: Sequence[str]
    train: RawSplit
    test: RawSplit
    source: str = ""
    close: Callable[[], None] | None = None


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
        from core.file_rows import readable

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


def stratified_split(
    labels: npt.NDArray[np.integer[Any]], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide indices so that every class keeps its share on both sides.

    Args:
        labels: N class indices.
        fraction: the share of the second part, between 0 and 1.
        seed: the same seed gives the same division.

    Returns:
        (rest, part): sorted indices; a class of two samples or more is in both.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    part = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(len(members) * fraction)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        part.append(members[:count])
    chosen = np.sort(np.concatenate(part)) if part else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
