"""Does the GPU compute what the CPU does, and the same bits again after a resume?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.job import Job, Stopped, Training, spread
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.predictions import Predictions
from torchyard.core.training import checkpoint, loop
from torchyard.pipelines.worker.stages import evaluation

# What float32 may differ by. The first steps show the kernels' rounding; later ones multiply it.
FIRST_STEPS, FIRST_TOLERANCE = 20, 1e-3
EPOCH_TOLERANCE = 0.02
ACCURACY_TOLERANCE = 0.01
HALF_TOLERANCE = 0.05

TWO_EPOCHS = ("train.epochs=2", "train.batch_size=128", "optimizer.lr=0.01", "train.log_every=1")
PLAIN = ("precision=float32", "train.channels_last=false")

RESNET = ("augmentations=[random_crop,horizontal_flip]", "model=resnet18", "optimizer.lr=0.05")
RESUMED = {
    "lenet": ("cifar10", "optimizer.lr=0.01"),
    "resnet18": ("cifar10", *RESNET),
    "resnet18 bfloat16": ("cifar10", *RESNET, "precision=bfloat16", "train.channels_last=true"),
    "quicknet": ("cifar10-fast",),
}


def devices(job: Job) -> None:
    """Two epochs on the CPU and on the GPU, there in every precision."""
    runs: dict[str, tuple[Training, float]] = {}

    def run(name: str, device: str, *overrides: str, rounded: bool = False) -> None:
        if not job.allows(5, name):
            return
        with job.report.attempt(name), tf32(rounded):
            training = job.train("cifar10", *TWO_EPOCHS, *overrides, f"device={device}")
            accuracy = test_accuracy(job, training, f"device={device}")
            runs[name] = training, accuracy
            figures = {
                "epoch_losses": [epoch.loss for epoch in training.epochs],
                "accuracy": accuracy,
                "placement": training.result["placement"]["execution"],
            }
            job.report.add(figures, name)

    device = job.device.type
    run("cpu", "cpu", *PLAIN)
    run("float32", device, *PLAIN)
    run("float32, tf32", device, *PLAIN, rounded=True)
    run("bfloat16", device, "precision=bfloat16", rounded=True)
    if device == "cuda":
        run("float16", device, "precision=float16", rounded=True)
    # Of exact arithmetic the first steps say most; what is rounded is held by the epochs' losses.
    with job.report.attempt("against the CPU"):
        for name, (training, accuracy) in runs.items():
            if name != "cpu":
                first = FIRST_TOLERANCE if name == "float32" else HALF_TOLERANCE
                epochs = EPOCH_TOLERANCE if name == "float32" else HALF_TOLERANCE
                figures = _differences(runs["cpu"][0], training)
                figures["accuracy"] = accuracy - runs["cpu"][1]
                figures["within_tolerance"] = (
                    figures["first_steps"] <= first
                    and max(figures["epochs"]) <= epochs
                    and abs(figures["accuracy"]) <= ACCURACY_TOLERANCE * (1 + (name != "float32"))
                )
                job.report.add(figures, "against the CPU", name)


def _differences(reference: Training, other: Training) -> dict[str, Any]:
    """Relative differences of losses."""

    def relative(one: float, two: float) -> float:
        return abs(one - two) / abs(one)

    steps = zip(reference.losses[:FIRST_STEPS], other.losses[:FIRST_STEPS], strict=True)
    epochs = zip(reference.epochs, other.epochs, strict=True)
    return {
        "first_steps": max(relative(one[1], two[1]) for one, two in steps),
        "epochs": [relative(one.loss, two.loss) for one, two in epochs],
    }


def test_accuracy(job: Job, training: Training, *overrides: str) -> float:
    """The share of the test images that the trained weights have right."""
    config = job.resolved("cifar10", *overrides).config.model_dump(mode="json")
    target = job.work / "predictions.npz"
    weights = training.result["weights"]
    evaluation.evaluate(config, str(job.data.folder), weights, str(target), lambda event: None)
    found = Predictions.load(target)
    return float(np.mean(found.predicted == found.targets))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether cuDNN may round a convolution's float32 inputs to ten bits, as it does by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def resume(job: Job) -> None:
    """Train, train again, and train with an interruption: are the weights the same bits?

    In a process of its own: torch looks once, at the first product, whether cuBLAS was told to
    be deterministic.
    """
    loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint at each log point
    for name, (preset, *overrides) in RESUMED.items():
        settings = [preset, *overrides]
        if job.tiny:
            if name.startswith("resnet"):
                continue
            settings += ["model.widths=[8,8,8]"] * (name == "quicknet")
        if not _compared(job, name, "deterministic", *settings, "train.deterministic=true"):
            # Some operation has no such algorithm: which, says the error. What do the others do?
            torch.use_deterministic_algorithms(True, warn_only=True)
            mode = "deterministic where it can be"
            _compared(job, name, mode, *settings, "train.deterministic=true")
        torch.use_deterministic_algorithms(False)
        _compared(job, name, "as usual", *settings)


def _compared(job: Job, name: str, mode: str, preset: str, *overrides: str) -> bool:
    """Gives whether it could be trained so."""
    # The interruption comes in the second epoch.
    batch, every, stop, end = (16, 1, 3, 4) if job.tiny else (256, 25, 225, 275)
    settings = [*overrides, f"train.batch_size={batch}", f"train.log_every={every}"]
    settings += [f"train.max_steps={end}", "train.epochs=10"]
    if not job.allows(10, name, mode):
        return True
    with job.report.attempt(name, mode):
        once = job.train(preset, *settings)
        again = job.train(preset, *settings)
        resumed, step = _interrupted(job, preset, settings, stop)
        digests = [run.result["weights_digest"] for run in (once, again, resumed)]
        figures = {
            "two_runs_equal": digests[0] == digests[1],
            "resumed_equal": digests[0] == digests[2],
            "resumed_from_step": step,
            "images_per_second": spread(again.rates(batch)),
            "final_loss": once.losses[-1][1],
            "compiled": once.result["placement"]["compiled"],
        }
        job.report.add(figures, name, mode)
        return True
    return False


def _interrupted(job: Job, preset: str, settings: list[str], stop: int) -> tuple[Training, int]:
    """Leave a training at a step, then run it again in its folder; gives where that began."""
    with tempfile.TemporaryDirectory(dir=job.work) as folder:
        with suppress(Stopped):
            job.train(preset, *settings, folder=Path(folder), stop_at=stop)
        step = checkpoint.load(Path(folder) / LAST)["position"]["step"]
        return job.train(preset, *settings, folder=Path(folder)), int(step)
