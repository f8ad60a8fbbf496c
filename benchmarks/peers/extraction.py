"""Preparation as a short script does it: extract, open each file with PIL, one thread."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main(archive: Path, folder: Path) -> None:
    """Extract below `folder`, and decode to arrays there."""
    started = time.perf_counter()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    count = 0
    for part in ("train", "test"):
        images, labels = [], []
        for number, name in enumerate(sorted(path.name for path in (folder / part).iterdir())):
            for file in sorted((folder / part / name).iterdir()):
                images.append(np.asarray(Image.open(file).convert("RGB")))
                labels.append(number)
        np.save(folder / f"{part}_images.npy", np.stack(images))
        np.save(folder / f"{part}_labels.npy", np.array(labels))
        count += len(images)
    print(json.dumps({"seconds": time.perf_counter() - started, "images": count}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
