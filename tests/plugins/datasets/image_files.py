"""Folders and archives of small images, and what preparing them gives."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchyard import EncodedSplit, PreparedDataset, UserError
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.plugins.datasets.image_folder import ImageFolder

RNG = np.random.default_rng(3)

FLAT = [f"{label}/{n}.png" for label in ("cat", "dog") for n in range(5)]
DIVIDED = [f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "12"]


def png(height: int = 6, width: int = 5, grey: bool = False, **options: object) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    buffer = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def tree(folder: Path, *names: str, **options: object) -> Path:
    """Write an image, or an empty folder where the name ends in a slash, for each name."""
    return fill(folder, names, lambda name: png(**options))  # type: ignore[arg-type]


def fill(folder: Path, names: Sequence[str], content: Callable[[str], bytes]) -> Path:
    """Write a file, or an empty folder where the name ends in a slash, for each name."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(name))
    return folder


def pack(folder: Path, archive: Path, top: str = "", shuffle: bool = True) -> Path:
    """Put all of a folder in an archive, in no particular order."""
    members = sorted(folder.rglob("*"))
    if shuffle:
        random.Random(1).shuffle(members)
    names = [top + member.relative_to(folder).as_posix() for member in members]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for member, name in zip(members, names, strict=True):
                packed.write(member, name)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix != ".tar" else "w") as packed_tar:
            for member, name in zip(members, names, strict=True):
                packed_tar.add(member, name, recursive=False)
    return archive


def contents(path: Path, scratch: Path, **options: object) -> tuple[Any, ...]:
    """The classes, and of each part (label, bytes) of every image, in their order."""
    scratch.mkdir(exist_ok=True)
    params = ImageFolder.model_validate(
        {"path": path, "image_size": 8, "channels": "rgb", **options}
    )
    raw = params.build(scratch)
    try:
        return raw.classes, *(
            [
                (int(label), part.read(each))
                for label, each in zip(part.labels, part.references, strict=True)
            ]
            if isinstance(part, EncodedSplit)
            else part
            for part in (raw.train, raw.validation, raw.test)
        )
    finally:
        if raw.close:
            raw.close()


def notes(path: Path, **options: object) -> list[str]:
    """What the data set's user is told."""
    params = ImageFolder.model_validate(
        {"path": path, "image_size": 8, "channels": "rgb", **options}
    )
    return [*params.build(path.parent).notes]


def prepared(path: Path, cache: Path, **options: object) -> PreparedDataset:
    params = ImageFolder.model_validate({"path": path, **options})
    return prepare_dataset("image_folder", params, cache, lambda *_: None)


def problems(path: Path, **options: object) -> list[str]:
    cache = path.parent / "cache"
    with pytest.raises(UserError) as caught:
        prepared(path, cache, **options)
    assert not [file for file in cache.rglob("*") if file.suffix in (".npy", ".tmp")]
    return [problem.removeprefix("dataset image_folder: ") for problem in caught.value.problems]
