"""Data sets as plugins build them, before preparation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
        groups: by split ("train", "validation", "test") the group of each sample, numbers or
            texts: the person, the place, the day. No group may be in two splits, and
            `train.validation` holds out whole groups.
        weights: how often each training sample is drawn in proportion to the others, with
            `train.sampler`; not negative.
        encoding: how a sample is made of its source, as JSON values, where a model's user has to
            do the same: kept in the manifest and in the metadata of the logged model.
    """

    classes: Sequence[str]
    train: RawSplit
    test: RawSplit
    source: str = ""
    close: Callable[[], None] | None = None
    validation: RawSplit | None = None
    notes: Sequence[str] = ()
    groups: Mapping[str, npt.ArrayLike] = field(default_factory=dict)
    weights: npt.ArrayLike | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict)
