"""Raw splits, checked and written to disk as arrays, in memory of constant size."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unicodedata import bidirectional, category

import numpy as np
import numpy.typing as npt

from torchyard.core.data.images.photos import ENTRY
from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.data.raw import (
    SAMPLE_KINDS,
    ArraySplit,
    EncodedSplit,
    RawData,
    RawSplit,
    stored_type,
)
from torchyard.core.errors import UserError
from torchyard.core.preparation.annotations import annotation_arrays
from torchyard.core.preparation.arrays import SampleFile
from torchyard.core.preparation.decoding import ParallelDecoding
from torchyard.core.preparation.image_set import LISTED, ImageSet
from torchyard.core.preparation.photo_pack import PhotoPack

# Characters that turn the direction of a text, and may show one name as another.
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class RawSplits:
    """The raw splits of a data set: checks them, and writes their arrays.

    Attributes:
        classes: class names.
        counts: number of samples in each split.
        labels: int64 class indices of each split.
        annotations: groups and weights, by split and kind.
        shape: shape of one sample.
        dtype: uint8, float32 or int64.
        images: those splits that are image files.

    Args:
        raw: what the plugin built.
        reading: how image files are read.

    Raises:
        UserError: with every problem that shows without reading all samples: an empty split, no
            classes or two of one name, wrong types or shapes, labels out of range.
    """

    def __init__(self, raw: RawData, reading: ImageReading = READING) -> None:
        self.classes = list(raw.classes)
        splits = {"train": raw.train, "validation": raw.validation, "test": raw.test}
        self._splits = {part: split for part, split in splits.items() if split is not None}
        if problems := _type_problems(self.classes, self._splits):
            raise UserError(problems)
        self.counts = {part: _count(split) for part, split in self._splits.items()}
        self.labels: dict[str, npt.NDArray[np.int64]] = {}
        self._streams: dict[str, Iterator[tuple[npt.NDArray[Any], int]]] = {}
        self._layouts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        encoded = {part: s for part, s in self._splits.items() if isinstance(s, EncodedSplit)}
        self._problems = _class_problems(self.classes)
        if len(encoded) < len(self._splits):
            if reading.storage == "encoded":
                self._problems.append("storage=encoded: it does not consist of image files alone")
            reading = reading.model_copy(update={"storage": "arrays"})
        self.images = ImageSet(encoded, reading)
        for part, split in self._splits.items():
            self._check(part, split)
        self._check_alike()
        self.annotations, problems = annotation_arrays(raw, self.counts)
        self._given = dict(self.annotations)  # of all samples, also of those left out later
        self._problems += problems
        self._raise_problems()
        self.shape, self.dtype = self._layouts["train"]

    @property
    def bytes_needed(self) -> int:
        """Size of the arrays or packed files on disk; of the latter, about."""
        sample = int(np.prod(self.shape)) * self.dtype.itemsize
        if self.images.encoded:
            sample = self.images.file_bytes + ENTRY.itemsize
        return sum(self.counts.values()) * (sample + 8)  # labels are int64

    @property
    def contents(self) -> str | None:
        """A digest of classes, labels, files, groups and weights; None: samples not in files.

        For after `write` or `images.read_checksums`.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for part, split in self._splits.items():
            if not isinstance(split, EncodedSplit):
                return None
            digest.update(np.asarray(split.labels).astype("<i8").data)
            digest.update(np.asarray(self.images.checksums[part]).astype("<u8").data)
        for (part, kind), values in sorted(self._given.items()):
            digest.update(f"{part} {kind}".encode() + values.tobytes())
        return digest.hexdigest()

    def write(
        self, folder: Path, broken_list: Path, on_progress: Callable[[str, int, int], None]
    ) -> dict[str, SampleFile | PhotoPack]:
        """Write the samples, `{part}_labels.npy` and annotations of every split.

        Args:
            folder: where to write them.
            broken_list: a file to name all images in that are refused, if they are many.
            on_progress: called with ("decoding" or "storing", samples done, all samples).

        Raises:
            UserError: with every problem: images that cannot be decoded, samples of another
                shape, values that are not finite, labels out of range.
            RunError: a decoding process died.
            OSError: the disk is full, or fails.
        """
        total, done = sum(self.counts.values()), 0
        if len(self.images):
            on_progress("decoding", 0, total)
            with ParallelDecoding() as decoding:
                for done in self.images.write(folder, broken_list, decoding):
                    on_progress("decoding", done, total)
            self._take_images()
        files = dict(self.images.files)
        for part, split in self._splits.items():
            if isinstance(split, EncodedSplit):
                continue
            path, count = folder / f"{part}_samples.npy", self.counts[part]
            file = files[part] = SampleFile(path, self.shape, self.dtype, count)
            if isinstance(split, ArraySplit):
                starts = range(0, count, file.chunk)
                chunks = (split.samples[start : start + file.chunk] for start in starts)
                steps = self._write_chunks(part, chunks, file)
            else:
                steps = self._write_chunks(part, self._stacked(part, file), file)
            on_progress("storing", done, total)
            for step in steps:
                done += step
                on_progress("storing", done, total)
        self._raise_problems()
        for part, labels in self.labels.items():
            np.save(folder / f"{part}_labels.npy", labels)
        for (part, kind), values in self.annotations.items():
            np.save(folder / f"{part}_{kind}.npy", values)
        return files

    def _take_images(self) -> None:
        """Take over what came of the image files: problems, their shape, how many are left."""
        self._problems += self.images.problems
        for part, shape in self.images.shapes.items():
            self._layouts[part] = (shape, self.dtype)
            self.counts[part], before = self.images.files[part].count, self.labels[part]
            self.labels[part] = before[self.images.kept[part]]
            for key in [key for key in self.annotations if key[0] == part]:
                self.annotations[key] = self.annotations[key][self.images.kept[part]]
            if part == "train":
                lost = np.setdiff1d(before, self.labels[part])
                self._problems += [
                    f"no image of the class '{self.classes[label]}' can be read" for label in lost
                ]
        self._check_alike()
        self.shape = self._layouts["train"][0]

    def _check_alike(self) -> None:
        if len({*self._layouts.values()}) > 1:
            self._problems.append(
                "the splits differ: "
                + ", ".join(f"{part} is {_layout(*found)}" for part, found in self._layouts.items())
            )

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
            shape = self.images.shapes[part]
            self._check_layout(part, shape, np.dtype(np.uint8))
            if shape[0] not in (1, 3):
                self._problems.append(
                    f"the {part} images cannot have {shape[0]} channels, only 1 or 3"
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
        stored = stored_type(dtype.name, len(shape))
        if stored is None or 0 in shape:
            self._problems.append(
                f"one {part} sample is {_layout(shape, dtype)}; "
                f"it must be {' or '.join(SAMPLE_KINDS.values())}"
            )
        else:
            self._layouts[part] = (shape, np.dtype(stored))  # in the machine's byte order

    def _check_labels(self, part: str, labels: Any, count: int) -> None:
        try:
            array = np.asarray(labels)
        except ValueError:  # lists of several lengths
            array = np.asarray(labels, dtype=object)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            scope = ""
            if array.dtype.kind == "f":
                scope = "; torchyard trains classifiers: regression is out of its scope"
            if array.ndim > 1 or array.dtype.kind == "O":
                scope = "; several labels a sample are out of torchyard's scope"
            self._problems.append(
                f"the {part} labels must be integers, one for each sample; "
                f"they are {_layout(array.shape, array.dtype)}{scope}"
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

    def _write_chunks(
        self, part: str, chunks: Iterable[npt.NDArray[Any]], file: SampleFile
    ) -> Iterator[int]:
        start, not_finite = 0, []
        for samples in chunks:
            if samples.dtype.kind == "f":
                bad = np.flatnonzero(~np.isfinite(samples).reshape(len(samples), -1).all(axis=1))
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
                stored = stored_type(sample.dtype.name, sample.ndim)
                if (sample.shape, stored) == (file.shape, file.dtype.name):
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


def _type_problems(classes: Iterable[object], splits: Mapping[str, object]) -> list[str]:
    """What is of another type than `RawData` says: a plugin need not have been checked by mypy."""
    problems = [
        f"the class {name!r} is of the type {type(name).__name__}, not a text"
        for name in classes
        if not isinstance(name, str)
    ]
    for part, split in splits.items():
        what, accepted = split, "an ArraySplit, a SampleSplit or an EncodedSplit"
        if isinstance(split, ArraySplit):
            what, accepted = split.samples, "a NumPy array (of samples of one shape)"
        if not isinstance(what, RawSplit | np.ndarray):
            kind = type(what)
            name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
            problems.append(f"the {part} split is of a {name}, not {accepted}")
    return problems


def _class_problems(classes: list[str]) -> list[str]:
    if not classes:
        return ["there are no classes"]
    unprintable = [
        name
        for name in classes
        if {*map(category, name)} & {"Cc", "Cs"} or {*map(bidirectional, name)} & TURNING
    ]
    return [
        f"the class name {name!r} holds control characters, or bytes that are no Unicode"
        for name in unprintable
    ] + [
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
