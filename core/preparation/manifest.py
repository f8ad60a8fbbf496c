"""The manifest of a prepared data set: what its files hold, and the digests that prove it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from torchyard.core.data.dataset import MANIFEST, SEAL, block_sums, seal
from torchyard.core.data.files import atomic_write, fsync
from torchyard.core.data.raw import RawData
from torchyard.core.preparation.annotations import listed
from torchyard.core.preparation.arrays import ImageStatistics, SampleFile, VectorStatistics
from torchyard.core.preparation.photo_pack import PhotoPack
from torchyard.core.preparation.splits import RawSplits


def write_manifest(
    folder: Path,
    name: str,
    raw: RawData,
    splits: RawSplits,
    files: Mapping[str, SampleFile | PhotoPack],
) -> str:
    """Write the manifest with digest and statistics, sync all to the disk.

    Returns:
        the name for the folder: from the digest, and from notes and settings, which the next
        source of the same content may not have.
    """
    arrays = sorted([*folder.glob("*.npy"), *folder.glob("*.bin")])
    statistics: ImageStatistics | VectorStatistics | None = None  # of token ids there are none
    if splits.dtype.kind != "i":
        statistics = ImageStatistics() if splits.dtype == np.uint8 else VectorStatistics()
    layout: dict[str, Any] = {
        "classes": splits.classes,
        "shape": splits.shape,
        "dtype": splits.dtype.name,
        "counts": splits.counts,
    }
    images = splits.images
    settings = {"broken": "refuse", "verify": False, "storage": "auto"}
    reading = images.reading.model_copy(update=settings).model_dump(
        mode="json", exclude_defaults=True
    )
    if images.encoded:  # other samples than arrays, and than those of another `resize`
        layout["storage"] = "encoded"
    digest = hashlib.sha256(
        json.dumps([layout, reading] if images.encoded else layout, sort_keys=True).encode()
    )
    # The arrays are synced to the disk while they are read back from the system's cache.
    with ThreadPoolExecutor(2) as disk:
        syncs = [disk.submit(fsync, path) for path in arrays]
        sums = {path.name: disk.submit(block_sums, path) for path in arrays}
        for part in splits.counts:
            stored = files[part]
            if isinstance(stored, PhotoPack):
                for data in stored.chunks():
                    digest.update(data)
                if part == "train":
                    statistics = stored.statistics
            else:
                for chunk in stored.chunks():
                    digest.update(chunk.data)
                    if part == "train" and statistics:
                        statistics.add(chunk)
            digest.update(splits.labels[part].astype("<i8").data)
        for (part, kind), values in sorted(splits.annotations.items()):
            digest.update(f"{part} {kind}".encode() + values.tobytes())
        for sync in syncs:
            sync.result()
        blocks = {file: found.result() for file, found in sums.items()}
    mean, std = statistics.result() if statistics else ([], [])
    notes = [*raw.notes, *images.notes, *_one_sided(splits), *_alike(splits.classes)]
    if splits.dtype == np.uint8:
        notes += _flat_channels(mean, std)
    manifest = {
        "name": name,
        **layout,
        "mean": mean,
        "std": std,
        "digest": digest.hexdigest(),
        "source": raw.source,
        "notes": notes,
        **({"encoding": dict(raw.encoding)} if raw.encoding else {}),
        "reading": reading,
        "sizes": {path.name: path.stat().st_size for path in arrays},
        "blocks": blocks,
    }
    with atomic_write(folder / MANIFEST) as file:
        file.write(json.dumps({**manifest, SEAL: seal(manifest)}, indent=1).encode())
    fsync(folder)
    if notes or raw.encoding or reading:
        told = [notes, reading, *[dict(raw.encoding)] * bool(raw.encoding)]
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:16]


def _one_sided(splits: RawSplits) -> list[str]:
    """What follows for each class that a split lacks."""
    notes = []
    for part, told in (
        ("train", "warning: no training sample is of {}, which cannot be learnt: {}"),
        ("test", "no test sample is of {}, whose accuracy is not known: {}"),
    ):
        counts = np.bincount(splits.labels[part], minlength=len(splits.classes))
        missing = [splits.classes[label] for label in np.flatnonzero(counts == 0)]
        number = f"{len(missing):,} of {len(splits.classes):,} classes"
        notes += [told.format(number, listed(missing))] * bool(missing)
    return notes


def _alike(classes: Iterable[str]) -> list[str]:
    """A warning about classes that may well be one: "Cat" and "cat", "1" and "1.0".

    Single letters differ on purpose, as in a data set of handwritten ones.
    """
    found: dict[str, list[str]] = {}
    for name in classes:
        plain = normalize("NFKC", name).casefold()
        plain = "".join(each for each in plain if each.isprintable() and not each.isspace())
        with suppress(ValueError, OverflowError):
            plain = str(float(plain))
        found.setdefault(plain if len(name) > 1 or not name.isalpha() else name, []).append(name)
    alike = [" and ".join(map(repr, names)) for names in found.values() if len(names) > 1]
    return [f"warning: are these classes one? {listed(alike)}"] * bool(alike)


def _flat_channels(mean: list[float], std: list[float]) -> list[str]:
    """A warning for each channel whose pixels are all alike."""
    names = {1: ["grey"], 3: ["red", "green", "blue"]}.get(len(std), [*map(str, range(len(std)))])
    return [
        f"warning: every pixel of the channel '{name}' is {average * 255:.0f} in all training "
        "images"
        for name, average, deviation in zip(names, mean, std, strict=True)
        if deviation == 0
    ]
