"""Raw splits, checked and written to disk as arrays, in memory of constant size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.raw import ArraySplit, EncodedSplit, RawData, RawSplit
from torchyard.core.errors import UserError
from torchyard.core.preparation.arrays import SampleFile
from torchyard.core.preparation.decoding import ImageDecoder, ParallelDecoding
from torchyard.core.preparation.image_file import ANOTHER_SIZE

PARTS = ("train", "test")
LISTED = 10  # problems of one kind that a message names; the rest are counted


class RawSplits:
    """The two raw splits of a data set: checks them, and writes their arrays.

    Attributes:
        classes: class names.
        counts: number of samples in each split.
        labels: int64 class indices of each split.
        shape: shape of one sample.
        dtype: uint8 or float32.

    Args:
        raw: what the plugin built.

    Raises:
        UserError: with every problem that shows without reading all samples: an empty split, no
            classes or two of one name, wrong types or shapes, labels out of range.
    """

    def __init__(self, raw: RawData) -> None:
        self.classes = list(raw.classes)
        self.counts = {"train": _count(raw.train), "test": _count(raw.test)}
        self.labels: dict[str, npt.NDArray[np.int64]] = {}
        self._splits: dict[str, RawSplit] = {"train": raw.train, "test": raw.test}
        self._streams: dict[str, Iterator[tuple[npt.NDArray[Any], int]]] = {}
        self._layouts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._problems = _class_problems(self.classes)
        for part in PARTS:
            self._check(part, self._splits[part])
        if len({*self._layouts.values()}) > 1:
            self._problems.append(
                "the splits differ: "
                + ", ".join(f"{part} is {_layout(*self._layouts[part])}" for part in PARTS)
            )
        self._raise_problems()
        self.shape, self.dtype = self._layouts["train"]

    @property
    def bytes_needed(self) -> int:
        """Size of the arrays on disk."""
        sample = int(np.prod(self.shape)) * self.dtype.itemsize
        return sum(self.counts.values()) * (sample + 8)  # labels are int64

    def write(
        self, folder: Path, on_progress: Callable[[str, int, int], None]
    ) -> dict[str, SampleFile]:
        """Write `{part}_samples.npy` and `{part}_labels.npy` of both splits.

        Args:
            folder: where to write them.
            on_progress: called with ("decoding" or "storing", samples done, all samples).

        Raises:
            UserError: with every problem: images that cannot be decoded, samples of another
                shape, values that are not finite, labels out of range.
            RunError: a decoding process died.
            OSError: the disk is full, or fails.
        """
        total, done = sum(self.counts.values()), 0
        files = {}
        encoded = sum(len(s.names) for s in self._splits.values() if isinstance(s, EncodedSplit))
        with ParallelDecoding(encoded) as decoding:
            for part, split in self._splits.items():
                path, count = folder / f"{part}_samples.npy", self.counts[part]
                file = files[part] = SampleFile(path, self.shape, self.dtype, count)
                if isinstance(split, EncodedSplit):
                    steps = self._write_images(part, split, file, decoding)
                elif isinstance(split, ArraySplit):
                    starts = range(0, count, file.chunk)
                    chunks = (split.samples[start : start + file.chunk] for start in starts)
                    steps = self._write_chunks(part, chunks, file)
                else:
                    steps = self._write_chunks(part, self._stacked(part, file), file)
                verb = "decoding" if isinstance(split, EncodedSplit) else "storing"
                on_progress(verb, done, total)
                for step in steps:
                    done += step
                    on_progress(verb, done, total)
        self._raise_problems()
        for part, labels in self.labels.items():
            np.save(folder / f"{part}_labels.npy", labels)
        return files

    def _raise_problems(self) -> None:
        if self._problems:
            raise UserError(self._problems)

    def _check(self, part: str, split: RawSplit) -> None:
        if _count(split) == 0:
            self._problems.append(f"the {part} split is empty")
            return
        if isinstance(split, ArraySplit):
            samples = split.samples
            self._check_layout(part, samples.shape[1:], samples.dtype)
            self._check_labels(part, split.labels, len(samples))
        elif isinstance(split, EncodedSplit):
            if len(split.references) != len(split.names):
                self._problems.append(
                    f"the {part} split has {len(split.references)} images "
                    f"and {len(split.names)} names"
                )
            self._check_layout(part, split.shape, np.dtype(np.uint8))
            if split.shape[0] not in (1, 3):
                self._problems.append(
                    f"the {part} images cannot have {split.shape[0]} channels, only 1 or 3"
                )
            self._check_labels(part, split.labels, len(split.references))
        else:
            stream = ((_as_sample(sample), label) for sample, label in split.samples)
            first = next(stream, None)
            if first is None:
                self._problems.append(f"the {part} split is empty")
                return
            self._check_layout(part, first[0].shape, first[0].dtype)
            self._streams[part] = chain([first], stream)

    def _check_layout(self, part: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        shape = tuple(int(length) for length in shape)
        if (dtype.name, len(shape)) not in (("uint8", 3), ("float32", 1)) or 0 in shape:
            self._problems.append(
                f"one {part} sample is {_layout(shape, dtype)}; it must be a uint8 image "
                "(C, H, W) or a float32 vector (D,)"
            )
        else:
            self._layouts[part] = (shape, np.dtype(dtype.name))  # in the machine's byte order

    def _check_labels(self, part: str, labels: Any, count: int) -> None:
        array = np.asarray(labels)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            self._problems.append(
                f"the {part} labels must be integers, one for each sample; "
                f"they are {_layout(array.shape, array.dtype)}"
            )
            return
        if len(array) != count:
            self._problems.append(f"the {part} split has {count} samples and {len(array)} labels")
        classes = len(self.classes)
        wrong = Counter(array[(array < 0) | (array >= classes)].tolist())
        if wrong and classes:
            named = ", ".join(
                f"{label} ({n} of them)" for label, n in sorted(wrong.items())[:LISTED]
            )
            self._problems.append(
                f"{part} labels are out of range: {named}; "
                f"there are {classes} classes, so labels go from 0 to {classes - 1}"
            )
        self.labels[part] = array.astype(np.int64)

    def _write_images(
        self, part: str, split: EncodedSplit, file: SampleFile, decoding: ParallelDecoding
    ) -> Iterator[int]:
        decoder = ImageDecoder(split.read, split.shape, split.resize, file)
        unreadable = []
        for count, failures in decoding.decode(decoder, split.references):
            unreadable += failures
            yield count
        if unreadable:
            unreadable.sort()
            self._problems += [f"{split.names[index]}: {why}" for index, why in unreadable[:LISTED]]
        if len(unreadable) > LISTED:
            self._problems.append(
                f"… and {len(unreadable) - LISTED} more of the {file.count} {part} images "
                "cannot be used"
            )
        if split.size_advice and any(why.startswith(ANOTHER_SIZE) for _, why in unreadable):
            self._problems.append(split.size_advice)

    def _write_chunks(
        self, part: str, chunks: Iterable[npt.NDArray[Any]], file: SampleFile
    ) -> Iterator[int]:
        start, not_finite = 0, []
        for samples in chunks:
            if samples.dtype.kind == "f":
                bad = np.flatnonzero(~np.isfinite(samples).all(axis=1))
                not_finite += (start + bad).tolist()
            file.write(start, samples)
            start += len(samples)
            yield len(samples)
        if not_finite:
            self._problems.append(
                f"{len(not_finite)} {part} samples hold values that are not finite "
                f"(the first is sample {not_finite[0]})"
            )

    def _stacked(self, part: str, file: SampleFile) -> Iterator[npt.NDArray[Any]]:
        """The samples of an iterable, in chunks; those of another layout are zeros."""
        stream, labels, others = self._streams[part], list[Any](), Counter[str]()
        while chunk := list(islice(stream, min(file.chunk, file.count - len(labels)))):
            samples = np.zeros((len(chunk), *file.shape), file.dtype)
            for index, (sample, label) in enumerate(chunk):
                labels.append(label)
                if (sample.shape, sample.dtype.name) == (file.shape, file.dtype.name):
                    samples[index] = sample
                else:
                    others[_layout(sample.shape, sample.dtype)] += 1
            yield samples
        self._problems += [
            f"{count} {part} samples are {layout}, unlike the first"
            for layout, count in others.items()
        ]
        short = len(labels) < file.count
        if short or next(stream, None) is not None:
            number = f"only {len(labels)}" if short else "more"
            self._problems.append(
                f"the {part} split declares count={file.count} but yields {number}"
            )
        self._check_labels(part, labels, len(labels))


def _class_problems(classes: list[str]) -> list[str]:
    if not classes:
        return ["there are no classes"]
    return [
        f"{count} classes are named {name!r}"
        for name, count in Counter(classes).items()
        if count > 1
    ]


def _count(split: RawSplit) -> int:
    if isinstance(split, ArraySplit):
        return len(split.samples)
    if isinstance(split, EncodedSplit):
        return len(split.references)
    return split.count


def _as_sample(sample: npt.ArrayLike) -> npt.NDArray[Any]:
    """A list of numbers becomes a float32 vector; arrays and tensors keep their type."""
    array = np.asarray(sample)
    if isinstance(sample, (list, tuple)) and array.ndim == 1 and array.dtype.kind in "iuf":
        return array.astype(np.float32)
    return array


def _layout(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    return f"{dtype} {tuple(shape)}"
