"""Photos for the rows that need some: CIFAR-10's images, enlarged, with texture and noise."""

from __future__ import annotations

import io
import itertools
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import archive

SIZES = [(500, 375), (500, 375), (375, 500), (500, 333), (480, 360)]  # as ImageNet's mostly are
QUALITY = 90
CLASSES = 10


def make(source: Path, folder: Path, count: int) -> None:
    """Write so many photos, `folder`/<class>/*.jpg, of about 50 KB: always the same."""
    found = ((label, jpeg) for part, label, jpeg in archive.entries(source) if part == "train")
    for number, (label, jpeg) in enumerate(itertools.islice(found, count)):
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        width, height = SIZES[number % len(SIZES)]
        noise = np.random.default_rng(number).normal(0, 5, (height, width, 1))
        fine = image.convert("L").resize((width // 3, height // 3), Image.Resampling.LANCZOS)
        texture = np.tile(np.asarray(fine, np.float32) - 128, (4, 4))[:height, :width, None]
        large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(large + 0.25 * texture + noise, 0, 255).astype(np.uint8)
        target = folder / f"class{number % CLASSES}" / f"{label}{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, quality=QUALITY)


def repeated(folder: Path, target: Path, times: int) -> None:
    """Another folder of the same photos, each so many times under other names."""
    for file in sorted(folder.glob("*/*.jpg")):
        place = target / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            os.link(file, place / f"{file.stem}-{copy}.jpg")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
