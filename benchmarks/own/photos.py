"""Read an epoch of a folder of photos as training does, timed and weighed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.own.settings import configuration, nothing
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.hosting.host import host
from torchyard.core.training.batches import (
    Batches,
    TrainingData,
    build_augmentation,
    steps_per_epoch,
)
from torchyard.core.training.network import Normalize
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.pipelines.worker.checks.config_check import region_first
from torchyard.pipelines.worker.stages import preparation


def main(folder: str, cache: str, workers: str, batch_size: str, size: str) -> None:
    """Prepare; then decode, crop, flip and normalize every training image once."""
    config = configuration(
        "cifar10",
        [
            "dataset.name=image_folder",
            f"dataset.path={folder}",
            f"dataset.image_size={size}",
            "dataset.test_fraction=0.01",
            "augmentations=[random_resized_crop,horizontal_flip]",
            f"train.workers={workers}",
            f"train.batch_size={batch_size}",
        ],
    )
    data = PreparedDataset.open(Path(preparation.prepare(config, cache, emit=nothing)["folder"]))
    resolved = resolve_once(config, host())
    region, changes = region_first(resolved.augmentations, data)
    assert region is not None
    classes = len(data.classes)
    augmentations = [build_augmentation(plugin, data.shape, classes) for plugin in changes]
    cpu, settings = torch.device("cpu"), resolved.config.train
    training = TrainingData(data.train, None, augmentations, cpu, region=region.region)
    batches = Batches(training, settings, cpu)
    normalize = Normalize(data.mean, data.std, data.shape, 255)
    batches.first(2)  # an import is not reading
    last = steps_per_epoch(len(data.train), settings.known_batch_size)
    started, images = time.perf_counter(), 0
    for batch in batches.epoch(0, 0, last, Strategy()):
        images += len(normalize(batch.inputs))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "images": images, "processor": time.process_time()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
