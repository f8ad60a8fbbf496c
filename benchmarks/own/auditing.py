"""Prepare an archive of images and audit it, timed; and what of planted duplicates is found.

The threshold was chosen on training images of even numbers (docs/audit.md); the copies are of odd
ones.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.own.settings import configuration, nothing
from torchyard.core.audit.audit import audit
from torchyard.core.audit.fingerprints import fingerprints
from torchyard.core.audit.near_duplicates import near_duplicates
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.pipelines.worker.stages import preparation

COPIES = 4000
RNG = np.random.default_rng(0)


def main(archive: str, cache: str) -> None:
    """Both stages in one process, as a run has them, then the audit of what was planted."""
    config = configuration("cifar10", ["dataset.name=image_folder", f"dataset.path={archive}"])
    started = time.perf_counter(), processor_seconds()
    done = preparation.prepare(config, cache, emit=nothing)
    prepared = time.perf_counter(), processor_seconds()
    data = PreparedDataset.open(Path(done["folder"]))
    found = audit(data, lambda *step: None, again=True)
    audited = time.perf_counter(), processor_seconds()
    crossing = {
        (split, index)
        for each in found.findings
        if each.kind == "near duplicate" and each.label != each.other
        for split, index in ((each.split, each.index), (each.other_split, each.other_index))
    }
    images = sum(data.counts.values())
    classes = len(data.classes)
    result: dict[str, Any] = {
        "prepare": prepared[0] - started[0],
        "audit": audited[0] - prepared[0],
        "processor": (audited[1] - prepared[1]) / (prepared[1] - started[1]),
        "images": images,
        "leaked": len(found.leaked["test"]) / data.counts["test"],
        # Duplicates are of one class, chance has no regard to classes.
        "false": len(crossing) / images * classes / (classes - 1),
        "recall": planted(data.train.samples),
    }
    print(json.dumps(result))


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def planted(samples: Any) -> dict[str, float]:
    """The share that is found of copies among all training images, by how they were changed."""
    sources = RNG.permutation(np.arange(1, len(samples), 2))[:COPIES]
    names = list(CHANGES)
    changes = [CHANGES[names[number % len(names)]] for number in range(COPIES)]
    copies = [change(samples[source]) for change, source in zip(changes, sources, strict=True)]
    whole = np.concatenate([samples, np.stack(copies)])
    prints = fingerprints([Split(whole, np.zeros(len(whole), np.int64))])
    pairs = near_duplicates(prints, np.arange(len(whole)))
    ours = pairs.second >= len(samples)
    place = pairs.second[ours] - len(samples)
    hits = np.zeros(COPIES, bool)
    hits[place[pairs.first[ours] == sources[place]]] = True
    return {name: float(hits[number :: len(names)].mean()) for number, name in enumerate(names)} | {
        "all": float(hits.mean())
    }


def crop(image: Any) -> Any:
    """Moved by up to two pixels, its border repeated."""
    down, right = RNG.choice([-2, -1, 1, 2], 2)
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return padded[:, 2 + down : 34 + down, 2 + right : 34 + right]


def rescaled(image: Any) -> Any:
    """Cropped by up to two pixels on each side, and scaled back."""
    left, top, right, bottom = (int(each) for each in RNG.integers(0, 3, 4))
    picture = Image.fromarray(image.transpose(1, 2, 0)).crop((left, top, 32 - right, 32 - bottom))
    return np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def jpeg(image: Any) -> Any:
    """Compressed again, at a quality of 50 to 90."""
    file = io.BytesIO()
    quality = int(RNG.integers(50, 91))
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def brightness(image: Any) -> Any:
    """Darker or brighter by up to 30 %."""
    return np.clip(image * RNG.uniform(0.7, 1.3), 0, 255).astype(np.uint8)


def mirror(image: Any) -> Any:
    """Left and right exchanged."""
    return image[:, :, ::-1]


CHANGES = {each.__name__: each for each in (crop, rescaled, jpeg, brightness, mirror)}


if __name__ == "__main__":
    main(*sys.argv[1:])
