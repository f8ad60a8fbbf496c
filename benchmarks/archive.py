"""The images: CIFAR-10 as JPEG files in an archive, and what rows make of it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

VARIABLE = "CIFAR10"
DEFAULT = Path(__file__).parent / "data" / "cifar10-jpeg.tar.gz"
PACKED = DEFAULT.with_name("cifar10.npz")  # the same images, as `benchmarks.gpu` reads them
ABSENT = (
    f"needs CIFAR-10 as JPEG files, train/<class>/*.jpg and test/<class>/*.jpg in a .tar.gz: "
    f"{VARIABLE}=path make bench, or put it at benchmarks/data/{DEFAULT.name}"
)


def find() -> Path | None:
    """The archive that the environment names, or the one at the default place."""
    named = os.environ.get(VARIABLE)
    if named and not Path(named).expanduser().is_file():
        raise SystemExit(f"{VARIABLE}={named}: there is no such file")
    found = Path(named).expanduser().absolute() if named else DEFAULT
    return found if found.is_file() else None


def entries(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """(part, class, JPEG) of each image."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)) is not None:
                part, label = member.name.removeprefix("./").split("/")[-3:-1]
                yield part, label, file.read()


def arrays(archive: Path, target: Path) -> None:
    """Decode everything, shuffled: what the peers train on; uint8 N x H x W x C and int64."""
    from PIL import Image

    found: dict[str, tuple[list[np.ndarray], list[str]]] = {"train": ([], []), "test": ([], [])}
    for part, label, jpeg in entries(archive):
        found[part][0].append(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
        found[part][1].append(label)
    classes = sorted(set(found["train"][1]))
    out: dict[str, Any] = {}
    for part, (images, labels) in found.items():
        order = np.random.default_rng(0).permutation(len(images))
        out[f"{part}_images"] = np.stack(images)[order]
        out[f"{part}_labels"] = np.array([classes.index(label) for label in labels])[order]
    np.savez(target, **out)


def repacked(
    archive: Path,
    target: Path,
    *,
    train: int | None = None,
    test: int | None = None,
    times: int = 1,
) -> None:
    """Write another archive with so many images a class in each part, each so many times."""
    wanted = {"train": train, "test": test}
    counts: dict[tuple[str, str], int] = {}
    with tarfile.open(target, "w:gz", compresslevel=1) as tar:
        for part, label, jpeg in entries(archive):
            number = counts[part, label] = counts.get((part, label), 0) + 1
            limit = wanted[part]
            if limit is not None and number > limit:
                continue
            for copy in range(times):
                member = tarfile.TarInfo(f"{part}/{label}/{number:05}-{copy}.jpg")
                member.size = len(jpeg)
                tar.addfile(member, io.BytesIO(jpeg))
