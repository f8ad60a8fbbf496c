"""Data sets as plugins build them, before preparation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# What a sample can be: the type of its values as they are stored, and its dimensions.
SAMPLE_KINDS = {
    ("uint8", 3): "an image, uint8 (C, H, W)",
    ("float32", 1): "a vector, float32 (D,)",
    ("float32", 2): "a signal, float32 (C, L)",
    ("int64", 1): "token ids, integers (L,)",
}
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def stored_type(dtype: str, dimensions: int) -> str | None:
    """The type that samples are stored with: integers (L,) with int64; None: they cannot be."""
    stored = "int64" if dimensions == 1 and dtype in _INTEGERS else dtype
    return stored if (stored, dimensions) in SAMPLE_KINDS else None


@dataclass(frozen=True)
class SampleSpec:
    """What a model has to fit.

    Attributes:
        shape: shape of one sample: (C, H, W) for images, (D,) for vectors, (C, L) for signals,
            (L,) for token ids.
        num_classes: number of classes; None where it is not known yet.
        dtype: "uint8", "float32" or "int64" (token ids); "": uint8 for images, else float32.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None
    dtype: str = ""

    def __post_init__(self) -> None:
        if not self.dtype:
            object.__setattr__(self, "dtype", "uint8" if len(self.shape) == 3 else "float32")


@dataclass(frozen=True)
class ArraySplit:
    """Samples that are arrays already.

    Attributes:
        samples: uint8 N x C x H x W, float32 N x D or N x C x L, or integers N x L.
        labels: N class indices.
    """

    samples: npt.NDArray[Any]
    labels: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class EncodedSplit:
    """Image files; `prepare_dataset` decodes them in parallel.

    Attributes:
        read: returns the bytes of the file that a reference stands for. It is pickled for other
            processes; where that is impossible, images are decoded in this process alone.
        references: N arguments of `read`: paths, offsets in an archive, ...
        names: N names for error messages, usually paths.
        labels: N class indices.
        shape: (C, H, W) to decode to; C = 1 is grey, 3 is RGB. None is found out: RGB where
            any image of the data set has colour, and the size that most images have.
        resize: scale images of another size to H x W, instead of refusing them.
        size_advice: a sentence for the message where images are refused for their size.
    """

    read: Callable[[Any], bytes]
    references: Sequence[Any]
    names: Sequence[str]
    labels: npt.NDArray[np.integer[Any]]
    shape: tuple[int | None, int | None, int | None]
    resize: bool = True
    size_advice: str = ""


@dataclass(frozen=True)
class SampleSplit:
    """Samples from an iterable.

    Attributes:
        samples: iterable of (sample, class index); a sample is one of those in `ArraySplit`, or
            a list of numbers, which is a float32 vector.
        count: how many it yields.
    """

    samples: Iterable[tuple[npt.ArrayLike, int]]
    count: int


RawSplit = ArraySplit | EncodedSplit | SampleSplit


@dataclass(frozen=True)
class RawData:
    """What the `build` of a data-set plugin returns.

    Attributes:
        classes: class names, in the order of the class indices.
        train: the training split.
        test: the test split.
        source: path or address of the data, recorded with each run.
        validation: the validation split, if the data set has one of its own; it is used in place
            of the share of the training split that `train.validation` holds out.
        notes: what its user should know, a line each, such as files that were left out; shown
            and recorded with each run.
        close: called when the splits have been read, or reading them failed; to remove
            temporary files, for example.
    """

    classes: Sequence[str]
    train: RawSplit
    test: RawSplit
    source: str = ""
    close: Callable[[], None] | None = None
    validation: RawSplit | None = None
    notes: Sequence[str] = ()


def stratified_split(
    labels: npt.NDArray[np.integer[Any]], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide samples at random into two parts, each class in the same proportion.

    Args:
        labels: N class indices.
        fraction: of each class that goes to the second part, between 0 and 1.
        seed: of the random generator; the same seed yields the same parts.

    Returns:
        (rest, part): sorted indices. A class of two or more samples has at least one in each.
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
