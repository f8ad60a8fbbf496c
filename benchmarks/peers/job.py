"""What every training loop here is given, and what it prints: the same work for all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimizer step would import it, seconds long, in the timed part
from torch import nn

from benchmarks.peers.networks import NETWORKS

LEARNING_RATE, MOMENTUM = 0.001, 0.9  # the tutorial's


@dataclass(frozen=True)
class Job:
    """One training: `images` of the training split, `epochs` times, in batches.

    Attributes:
        arrays: an .npz of `archive.arrays`.
        tracked, bare, test: what some of the loops can be asked for, as they say.
    """

    arrays: Path
    network: str
    batch_size: int
    images: int
    epochs: int
    tracked: bool
    bare: bool
    test: bool

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        torch.manual_seed(0)
        return NETWORKS[self.network]()

    def pixels(self, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Images N x H x W x C as uint8 and their labels."""
        arrays = np.load(self.arrays)
        limit = self.images if part == "train" else None
        return arrays[f"{part}_images"][:limit], arrays[f"{part}_labels"][:limit]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images, float32 N x C x H x W in -1..1 and in memory, and labels."""
        images, labels = self.pixels()
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return channels_first.float().div_(127.5).sub_(1), torch.from_numpy(labels)


def run(train: Callable[[Job], dict[str, float]]) -> None:
    """Train once for each batch size on the command line, and print what came out.

    Args:
        train: gives the `seconds` of the training alone, and whatever else it found.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4])
    parser.add_argument("--images", type=int, nargs="+", default=[50_000], help="for each size")
    parser.add_argument("--epochs", type=int, default=1)
    for flag in ("--tracked", "--bare", "--test"):
        parser.add_argument(flag, action="store_true")
    options = vars(parser.parse_args())
    found = []
    sizes = zip(options.pop("batch_size"), options.pop("images"), strict=True)
    for batch_size, images in sizes:
        job = Job(batch_size=batch_size, images=images, **options)
        result = train(job)
        speed = job.images * job.epochs / result["seconds"]
        found.append({"batch_size": batch_size, "images_per_second": speed, **result})
    print(json.dumps({"jobs": found}))
