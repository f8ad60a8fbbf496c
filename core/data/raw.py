"""Data sets as a plugin gives them: raw splits, before preparation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
