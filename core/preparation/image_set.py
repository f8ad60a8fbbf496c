"""All image files of a data set: the form they have in common, and their arrays or packs."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from torchyard.core.data.images.decoding import ANOTHER_SIZE, Findings, decode_image, measure
from torchyard.core.data.images.reading import ImageReading
from torchyard.core.data.raw import EncodedSplit
from torchyard.core.preparation.arrays import SampleFile
from torchyard.core.preparation.decoding import Decoded, ImageDecoder, ParallelDecoding
from torchyard.core.preparation.photo_pack import PhotoPack

LISTED = 10  # problems of one kind that a message names; the rest are counted
LEFT_OUT = "left_out.txt"
SURVEYED = 16  # images that are looked at for the size of all
FEW = 16  # deep images of fewer levels of the 256 have lost much
SURVEY_SIDE = 32  # pixels; enough to see colour
# Images that become this small are decoded once: in every epoch it would take longer than most
# networks of that size train.
SMALL_PIXELS = 64 * 64


class ImageSet:
    """The splits of a data set that are image files.

    What a split leaves open is found out: their size is the one that most of a sample have, drawn
    evenly from all; and they are grey until one with colour is met, which makes the whole set RGB,
    in a second pass. Images of more than 8 bits take one, too: first their values' range is found.
    The same sample decides whether arrays are made or the files are kept, if no setting does.

    Attributes:
        encoded: whether the files are kept as they are.
        file_bytes: of one file in the sample, on average; 0 where none had to be looked at.
        shapes: (C, H, W) of each split; C may turn from 1 to 3 in `write`.
        files: array or pack of each split, made by `write`.
        checksums: CRC-32 of each file, 0 where it cannot be read, after `write`.
        kept: indices of the images of each split that have a sample, after `write`.
        left_out: "name: reason" of each image that is left out, after `write`.
        problems: what is wrong with the images, after `write`.
        reading: the settings, after `write` with the range of values that was found.

    Args:
        splits: by part.
        reading: the settings.
    """

    def __init__(self, splits: Mapping[str, EncodedSplit], reading: ImageReading) -> None:
        self.reading = reading
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.files: dict[str, SampleFile | PhotoPack] = {}
        self.checksums: dict[str, array[int]] = {}
        self.kept: dict[str, npt.NDArray[np.int64]] = {}
        self.left_out: list[str] = []
        self.problems: list[str] = []
        self._splits = splits
        self._findings = Findings()
        self.file_bytes = 0
        self.encoded, self._why_encoded = False, ""
        self._set_shapes()
        if self.encoded and reading.resize is None:
            self.reading = reading.model_copy(update={"resize": "crop"})

    def __len__(self) -> int:
        return sum(len(split.references) for split in self._splits.values())

    def read_checksums(self) -> Iterator[int]:
        """Read all files for their `checksums`; yields how many are read."""
        done = 0
        for part, split in self._splits.items():
            self.checksums[part] = array("L")
            for reference in split.references:
                try:
                    checksum = zlib.crc32(split.read(reference))
                except Exception:  # a plugin's `read` may raise anything
                    checksum = 0
                self.checksums[part].append(checksum)
                done += 1
                yield done

    def write(self, folder: Path, broken_list: Path, decoding: ParallelDecoding) -> Iterator[int]:
        """Decode all images, into `files` or to check what is kept there, step by step.

        Args:
            folder: of the arrays or packs.
            broken_list: a file to name all images in that are refused, if they are many.
            decoding: does the work.

        Yields:
            How many images are done; anew from the first, if another pass is needed.

        Raises:
            RunError: a decoding process died.
            OSError: the disk is full, or fails.
        """
        while True:
            failures: dict[str, list[tuple[int, str]]] = {}
            self._findings = Findings()
            self.files = {part: self._file(folder, part) for part in self._splits}
            decoding.remaining, done = len(self), 0
            for part, split in self._splits.items():
                file, start = self.files[part], 0
                decoder = ImageDecoder(
                    split.read,
                    self.shapes[part],
                    split.resize,
                    part,
                    None if isinstance(file, PhotoPack) else file,
                    self.reading,
                )
                failures[part], self.checksums[part] = [], array("L")
                for result in decoding.decode(decoder, split.references):
                    if isinstance(file, PhotoPack):
                        failures[part] += _pack(file, split, start, result)
                    failures[part] += result.failures
                    self._findings.add(result.findings)
                    self.checksums[part].extend(result.checksums)
                    start += len(result.checksums)
                    done += len(result.checksums)
                    yield done
                if isinstance(file, PhotoPack):
                    file.finish()
            if not self._form_changes():
                break
        refused = self._settle(failures)
        if max(len(refused), len(self.left_out)) > LISTED:
            everything = "\n".join(refused or self.left_out).encode("utf-8", "backslashreplace")
            (broken_list if refused else folder / LEFT_OUT).write_bytes(everything)
            if refused:
                self.problems.append(f"all of them are named in {broken_list}")
        if self.problems:
            self._advise([why for unusable in failures.values() for _, why in unusable])

    @property
    def notes(self) -> list[str]:
        """What was converted or left out, after `write`: one line for each kind."""
        found, total = self._findings, f"of {len(self):,} images"
        automatic = any(split.shape[0] is None for split in self._splits.values())
        low, high = self.reading.value_range or (0, 0)
        usual = found.usual_greatest - found.usual_least
        lines = {
            f"{found.grey:,} {total} are grey and become RGB"
            + automatic * ", because others have colour": found.grey,
            f"{found.coloured:,} {total} have colour and become grey": found.coloured,
            f"{found.colourless:,} {total} are saved in colour and have none: "
            "the set is grey": found.colourless and automatic,
            f"{found.transparent:,} {total} are transparent and are laid over "
            f"{list(self.reading.background)} (dataset.background)": found.transparent,
            f"{found.deep:,} {total} have more than 8 bits: their values from {low:.6g} to "
            f"{high:.6g} become 0 to 255 (dataset.value_range)": found.deep,
            f"warning: nearly all of these values lie between {found.usual_least:.6g} and "
            f"{found.usual_greatest:.6g}, and few levels are left of them: set "
            f"dataset.value_range=[{found.usual_least:.6g},{found.usual_greatest:.6g}]": (
                0 < usual * FEW < high - low
            ),
            f"{found.animated:,} {total} have further frames or pages, which are not used": (
                found.animated
            ),
            f"{len(self.left_out):,} {total} cannot be read and are left out "
            f"(dataset.broken=skip): {_listed(self.left_out)}": self.left_out,
        }
        return self._storage_notes() + [line for line, holds in lines.items() if holds]

    def _storage_notes(self) -> list[str]:
        if not self.encoded:
            return []
        _, height, width = self.shapes["train"]
        how = str(self.reading.resize)
        if how == "crop":
            how += f", dataset.crop_ratio={self.reading.crop_ratio:g}"
        notes = [
            f"image files are kept, and decoded to {height}x{width} when they are needed "
            f"(dataset.storage=encoded, dataset.resize={how}){self._why_encoded}"
        ]
        packs = [file for file in self.files.values() if isinstance(file, PhotoPack)]
        if smaller := sum(pack.smaller(height, width) for pack in packs):
            notes.append(
                f"{smaller:,} of {len(self):,} images are smaller than {height}x{width} "
                "and are scaled up"
            )
        return notes

    def _set_shapes(self) -> None:
        """Take the splits' shapes; where something is left open, look at some images."""
        sizes, coloured = Counter[tuple[int, int]](), False
        wanted = {(split.shape[1], split.shape[2]) for split in self._splits.values()}
        small = all((height or 0) * (width or 0) <= SMALL_PIXELS for height, width in wanted)
        chosen = self.reading.storage
        open_ = any(None in split.shape for split in self._splits.values())
        if open_ or (self._splits and (chosen == "encoded" or (chosen == "auto" and not small))):
            sizes, coloured = self._survey()
        usual = sizes.most_common(1)[0][0] if sizes else (1, 1)
        for part, split in self._splits.items():
            channels, height, width = split.shape
            self.shapes[part] = (
                (3 if coloured else 1) if channels is None else channels,
                usual[0] if height is None else height,
                usual[1] if width is None else width,
            )
        if chosen == "auto" and self._splits:
            self._why_encoded = self._reason_to_keep(sizes)
        self.encoded = bool(self._why_encoded) or (chosen == "encoded" and bool(self._splits))

    def _reason_to_keep(self, sizes: Mapping[tuple[int, int], int]) -> str:
        """Why files should be kept as they are; "" if they should not."""
        channels, height, width = max(self.shapes.values(), key=lambda shape: int(np.prod(shape)))
        if height * width <= SMALL_PIXELS:
            return ""
        if len(sizes) > 1:
            return ": they have several sizes"
        if channels * height * width > self.file_bytes:
            return ": arrays would be larger"
        return ""

    def _survey(self) -> tuple[Counter[tuple[int, int]], bool]:
        """The sizes that some images have, and whether one of them has colour."""
        sizes, findings, read = Counter[tuple[int, int]](), Findings(), 0
        step = max(1, len(self) // SURVEYED)
        sample = [
            (split, index)
            for split in self._splits.values()
            for index in range(0, len(split.references), step)
        ]
        others = (
            (split, index)
            for split in self._splits.values()
            for index in range(len(split.references))
        )
        for number, (split, index) in enumerate(chain(sample, others)):
            if number >= len(sample) and sizes:
                break
            try:
                data = split.read(split.references[index])
                sizes[measure(data, self.reading)[:2]] += 1
                read += len(data)
                if not findings.coloured:
                    shape = (1, SURVEY_SIDE, SURVEY_SIDE)
                    decode_image(data, shape, True, self.reading, findings)
            except Exception:  # it is named when all are decoded
                continue
        self.file_bytes = read // max(1, sizes.total())
        return sizes, findings.coloured > 0

    def _file(self, folder: Path, part: str) -> SampleFile | PhotoPack:
        if self.encoded:
            return PhotoPack(folder, part)
        return SampleFile(
            folder / f"{part}_samples.npy",
            self.shapes[part],
            np.dtype(np.uint8),
            len(self._splits[part].references),
        )

    def _form_changes(self) -> bool:
        """Whether the images must be decoded again, in another form."""
        found, changes = self._findings, False
        for part, split in self._splits.items():
            channels, height, width = self.shapes[part]
            if split.shape[0] is None and channels == 1 and found.coloured:
                self.shapes[part] = (3, height, width)
                changes = True
        if found.deep and self.reading.value_range is None:
            high = found.greatest + (found.greatest == found.least)
            self.reading = self.reading.model_copy(update={"value_range": (found.least, high)})
            changes = True
        return changes

    def _settle(self, failures: Mapping[str, list[tuple[int, str]]]) -> list[str]:
        """Leave out what is broken, if that is asked for; all else is a problem.

        Returns:
            "name: reason" of every image that cannot be used.
        """
        everything = []
        for part, unusable in failures.items():
            names, file = self._splits[part].names, self.files[part]
            total = len(self._splits[part].references)
            self.kept[part] = np.arange(total)
            refused = sorted(unusable)
            if self.reading.broken == "skip":
                broken = [each for each in refused if not each[1].startswith(ANOTHER_SIZE)]
                kept = np.setdiff1d(self.kept[part], [index for index, _ in broken])
                if broken and len(kept):
                    refused = [each for each in refused if each[1].startswith(ANOTHER_SIZE)]
                    self.left_out += [f"{names[index]}: {why}" for index, why in broken]
                    self.kept[part] = kept
                    if isinstance(file, SampleFile):  # a pack has never had the others
                        file.keep(kept)
            named = [f"{names[index]}: {why}" for index, why in refused]
            everything += named
        self.problems += everything[:LISTED]
        if len(everything) > LISTED:
            more = len(everything) - LISTED
            self.problems.append(f"… and {more:,} more of {len(self):,} images cannot be used")
        return everything

    def _advise(self, reasons: list[str]) -> None:
        """Say once what helps."""
        sized = [why.startswith(ANOTHER_SIZE) for why in reasons]
        advice = next((s.size_advice for s in self._splits.values() if s.size_advice), "")
        if any(sized) and advice:
            self.problems.append(advice)
        if not all(sized) and self.reading.broken == "refuse":
            self.problems.append("set dataset.broken=skip to leave out images that cannot be read")


def _pack(
    pack: PhotoPack, split: EncodedSplit, start: int, result: Decoded
) -> list[tuple[int, str]]:
    """Add the images that are not broken; returns those that have changed since they were checked.

    They are read again: from the system's cache, where sending them from the process that has
    checked them would take as long, and more memory.
    """
    broken, changed = {index for index, _ in result.failures}, list[tuple[int, str]]()
    for place, (checksum, measured) in enumerate(
        zip(result.checksums, result.measures, strict=True)
    ):
        if (index := start + place) in broken:
            continue
        try:
            data = split.read(split.references[index])
        except Exception as error:  # a plugin's `read` may raise anything
            changed.append((index, str(error)))
            continue
        if zlib.crc32(data) == checksum:
            pack.add(data, measured)
        else:
            changed.append((index, "the file was changed while it was read"))
    pack.statistics.merge(result.statistics)
    return changed


def _listed(lines: list[str]) -> str:
    more = len(lines) - LISTED
    rest = f" … and {more:,} more, all in {LEFT_OUT} of the prepared data" if more > 0 else ""
    return ", ".join(lines[:LISTED]) + rest
