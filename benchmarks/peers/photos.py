"""Read an epoch of a folder of photos with torchvision's or timm's loader, timed."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_loader(folder: Path, workers: int, batch_size: int, size: int) -> DataLoader:
    """As in PyTorch's ImageNet example."""
    from torchvision import datasets, transforms

    changes = [
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(folder, transforms.Compose(changes))
    return DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True)


def timm_loader(folder: Path, workers: int, batch_size: int, size: int) -> Iterable:
    """As timm's training script has it, without its other augmentations."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=folder, is_training=True),
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        device=torch.device("cpu"),
    )


LOADERS = {"torchvision": torchvision_loader, "timm": timm_loader}


def main() -> None:
    """Take the first batch, which starts the workers, then time an epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("loader", choices=LOADERS)
    parser.add_argument("folder", type=Path)
    for name in ("workers", "batch_size", "size"):
        parser.add_argument(name, type=int)
    options = vars(parser.parse_args())
    loader = LOADERS[options.pop("loader")](**options)
    started, images = 0.0, 0
    for batch, _ in loader:
        if not started:
            started = time.perf_counter()
            continue
        images += len(batch)
    print(json.dumps({"seconds": time.perf_counter() - started, "images": images}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
