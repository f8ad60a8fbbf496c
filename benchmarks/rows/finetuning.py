"""What accuracy fine-tuning EfficientNet-Lite0 reaches in how long, against timm and fastai."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import archive
from benchmarks.bench import Bench, Run, Skipped
from benchmarks.comparison import Comparison, Series, Target
from benchmarks.home import PEERS, BenchmarkError, Home

TITLE = "Fine-tuning: EfficientNet-Lite0, ImageNet's weights, on 5,000 of CIFAR-10's images"
TRAIN, TEST, SIZE, EPOCHS = 500, 200, 96, 3  # a class; pixels
OURS, TIMM, FASTAI = "torchyard", "timm's recipe", "fastai's fine_tune"
SETTINGS = (
    *("digits", "dataset.name=image_folder", "augmentations=[random_crop,horizontal_flip]"),
    *("model=timm", "model.architecture=tf_efficientnet_lite0"),
    *("model.freeze=[conv_stem,bn1,blocks,conv_head,bn2]", "model.freeze_epochs=1"),
    "dataset.normalize=[0.49803922,0.50196078]",  # (x - 127) / 128
    *("optimizer=adamw", "optimizer.lr=1e-3", "optimizer.weight_decay=0.05"),
    *("optimizer.decay_norms=false", "scheduler=one_cycle"),
    *("loss.label_smoothing=0.1", "train.batch_size=32"),
)
LARGEST_DIFFERENCE = 1e-4  # of the logits of two networks that are to be the same


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Each once: the same images, weights, size, batch and number of epochs."""
    if not PEERS.exists():
        raise Skipped("needs the peers in benchmarks/.venv, which `make bench` installs")
    train, test = (max(8, count // 25) if bench.quick else count for count in (TRAIN, TEST))
    packed = bench.scratch / "finetuning.tar.gz"
    archive.repacked(bench.archive, packed, train=train, test=test)
    images, weights = bench.scratch / "finetuning", bench.scratch / "lite0.pth"
    with tarfile.open(packed) as tar:
        tar.extractall(images, filter="data")
    epochs = bench.rounds(EPOCHS) + bench.quick  # fastai takes one for the head
    with bench.home("ours") as home, bench.home("peers") as peers:
        peers.script("peers.finetuning", "weights", weights, python=PEERS)
        data = (
            *(f"dataset.path={packed}", f"dataset.image_size={SIZE}"),
            f"model.weights={weights}",
        )
        difference = _difference_at_the_start(home, peers, weights, bench.scratch, data)
        given = ("--images", images, "--size", SIZE, "--epochs", epochs)

        def peer(how: str) -> dict[str, Any]:
            return peers.script("peers.finetuning", how, weights, *given, python=PEERS)

        theirs = {TIMM: peer("timm"), FASTAI: peer("fastai")}
        ours = _ours(home, *data, f"train.epochs={epochs}")
    accuracies = {OURS: ours.accuracy} | {how: found["accuracy"] for how, found in theirs.items()}
    seconds = {OURS: ours.stages["train"]} | {how: each["seconds"] for how, each in theirs.items()}
    others = (TIMM, FASTAI)
    best = max(theirs[how]["accuracy"] for how in others)
    # Of the difference of two shares of so many images: 95 % of it is chance.
    noise = 1.96 * math.sqrt(2 * best * (1 - best) / (10 * test))
    return [
        Comparison(
            "Test accuracy",
            "%",
            True,
            tuple(Series(name, (100 * value,)) for name, value in accuracies.items()),
            (
                Target(
                    f"within noise ({100 * noise:.1f} points) of the best of the others, or above",
                    OURS,
                    1 - noise / best,
                    True,
                    others,
                ),
            ),
        ),
        Comparison(
            "Seconds of training",
            "seconds",
            False,
            tuple(Series(name, (value,)) for name, value in seconds.items()),
            (Target("≤ 0.9 × the fastest of the others", OURS, 0.9, False, others),),
        ),
    ], [
        f"{10 * train:,} images to train, {10 * test:,} to test, {SIZE} pixels, {epochs} epochs, "
        "batch 32, channels last. All begin with the same network, its new last layer included: "
        f"the logits of the same images differ by {difference:.0e} at most.",
        "torchyard: AdamW, 1e-3, weight decay 0.05, one cycle, label smoothing 0.1, shifts and "
        "flips; one epoch for the head. timm, by the parts of its train.py: the same optimizer "
        "and loss, cosine, crops of half the area and more, flips. fastai: `fine_tune` with "
        "a base rate of 1e-2 and `aug_transforms`, one epoch for the head; the network split in "
        "three, as fastai splits a ResNet; its validation after each epoch is not counted.",
    ]


def _difference_at_the_start(
    home: Home, peers: Home, weights: Path, scratch: Path, data: tuple[str, ...]
) -> float:
    """How far apart the logits are that our network and the others' begin with.

    Raises:
        BenchmarkError: it is not the same network.
    """
    images = scratch / "probe.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8)
    np.save(images, pixels)
    ours = home.script("own.finetuning", images, *SETTINGS, *data)
    theirs = peers.script("peers.finetuning", "logits", weights, "--images", images, python=PEERS)
    difference = float(np.abs(np.subtract(ours["logits"], theirs["logits"])).max())
    if difference > LARGEST_DIFFERENCE:
        raise BenchmarkError(f"not the same network: logits differ by {difference}")
    return difference


def _ours(home: Home, *overrides: str) -> Run:
    ended = home.torchyard("run", *SETTINGS, *overrides, "--json")
    home.settle()
    return Run.of(ended)
