"""Raw data that tests prepare: arrays, streams and image files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.images.reading import ImageReading
from torchyard.core.data.raw import ArraySplit, EncodedSplit, RawData
from torchyard.core.errors import UserError
from torchyard.core.hosting.params import DatasetParams
from torchyard.core.preparation.prepare import prepare_dataset

RNG = np.random.default_rng(7)
TWO = np.array([0, 1])


def quiet(description: str, done: int, total: int) -> None:
    pass


def dataset(build: Callable[[Path], Any], fingerprint: str = "") -> Any:
    """A data set as a plugin would give it, counting its builds."""

    class Given(DatasetParams):
        tag: int = 0
        builds: ClassVar[list[Path]] = []

        def build(self, downloads: Path) -> RawData:
            self.builds.append(downloads)
            return build(downloads)

        def fingerprint(self) -> str:
            return fingerprint

    return Given


def images(count: int, *shape: int) -> Any:
    return RNG.integers(0, 256, (count, *(shape or (3, 4, 5))), dtype=np.uint8)


def vectors(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, dtype=np.float32)


def raw(train: Any = None, test: Any = None, classes: tuple[str, ...] = ("cat", "dog")) -> RawData:
    return RawData(
        classes,
        train or ArraySplit(images(6), np.array([0, 1, 0, 1, 0, 1])),
        test or ArraySplit(images(2), np.array([0, 1])),
        "here",
    )


def prepared(content: RawData, cache: Path, **reading: Any) -> PreparedDataset:
    chosen = ImageReading(**reading)
    return prepare_dataset("given", dataset(lambda _: content)(), cache, quiet, chosen)


def problems(content: RawData, cache: Path, **reading: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        prepared(content, cache, **reading)
    assert all(problem.startswith("dataset given: ") for problem in caught.value.problems)
    assert not list((cache / "prepared").glob("*/manifest.json"))
    assert not list((cache / "prepared").glob("*.tmp"))
    return [problem.removeprefix("dataset given: ") for problem in caught.value.problems]


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 12, width: int = 9) -> Image.Image:
    return Image.fromarray(np.moveaxis(images(1, 3, height, width)[0], 0, 2))


def image_files(folder: Path, count: int) -> list[Path]:
    return saved(folder, *(photo() for _ in range(count)))


def saved(folder: Path, *pictures: Image.Image, format: str = "PNG") -> list[Path]:
    folder.mkdir(exist_ok=True, parents=True)
    files = [folder / f"{number:04}.{format.lower()}" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(encoded(picture, format))
    return files


OPEN = (None, None, None)  # a shape that is to be found out


def image_split(
    files: list[Path], shape: tuple[int | None, ...] = (3, 12, 9), **options: Any
) -> Any:
    options = {"read": Path.read_bytes, "resize": True, **options}
    labels = np.arange(len(files)) % 2
    return EncodedSplit(
        references=files, names=[str(f) for f in files], labels=labels, shape=shape, **options
    )


def start(script: str, folder: Path, *arguments: Any) -> subprocess.Popen[str]:
    """Run a script in another process, in a folder, which is also its first argument."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script), str(folder), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
