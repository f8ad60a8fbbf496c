"""Prepare the images of an archive into an empty or a full cache, timed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.own.settings import configuration, nothing
from torchyard.core.data.dataset import PreparedDataset
from torchyard.pipelines.worker.stages import preparation


def main(archive: str, cache: str) -> None:
    """Prepare, as the stage of a run does."""
    config = configuration("cifar10", ["dataset.name=image_folder", f"dataset.path={archive}"])
    started = time.perf_counter()
    done = preparation.prepare(config, cache, emit=nothing)
    seconds = time.perf_counter() - started
    counts = PreparedDataset.open(Path(done["folder"])).counts
    print(json.dumps({"seconds": seconds, "images": sum(counts.values()), "found": done["found"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
