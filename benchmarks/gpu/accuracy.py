"""How long it takes to an accuracy on CIFAR-10, beside airbench94."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.gpu.job import Job, spread
from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.evaluation.predict import predict
from torchyard.core.training import checkpoint, network

GOAL = 0.94
SEEDS = 10
AIRBENCH_RUNS = 10
# https://github.com/KellerJordan/cifar10-airbench, on an NVIDIA A100 of 400 W with torch 2.4.1.
PUBLISHED = {
    "airbench94_muon.py": {"seconds": 2.59, "accuracy": 0.9401},
    "airbench94_compiled.py": {"seconds": 3.09, "accuracy": 0.9401},
    "airbench94.py": {"seconds": 3.83, "accuracy": 0.9401},
}

HALF = ("precision=bfloat16", "train.channels_last=true")
LONG = ("train.max_steps=none", *HALF)
WIDE = (*LONG, "model=widenet", "train.batch_size=500", "loss.label_smoothing=0.2")
# Of each the first seed; from the second run on only what came near the goal is worth its time.
CANDIDATES = {
    "the preset": (),
    "the preset, bfloat16, channels last": HALF,
    "quicknet 128 256 512, 16 epochs": (
        *LONG,
        "model.widths=[128,256,512]",
        "train.epochs=16",
        "train.batch_size=500",
    ),
    "widenet, 10 epochs": (*WIDE, "train.epochs=10"),
    "widenet, 10 epochs, lr 0.2": (*WIDE, "train.epochs=10", "optimizer.lr=0.2"),
    "widenet, 10 epochs, others 40": (*WIDE, "train.epochs=10", "optimizer.others=40"),
    "widenet, 16 epochs": (*WIDE, "train.epochs=16"),
    "widenet, 16 epochs, others 40": (*WIDE, "train.epochs=16", "optimizer.others=40"),
}
TINY = ("model.widths=[8,8,8]", "train.max_steps=2", "train.epochs=1", "train.batch_size=16")


def measure(job: Job) -> None:
    """One seed of each candidate, three of the preset, ten of the fastest that gets there."""
    candidates = dict(list(CANDIDATES.items())[::3]) if job.tiny else CANDIDATES
    reached: dict[str, float] = {}
    for name, overrides in candidates.items():
        if job.allows(8, name):
            with job.report.attempt(name):
                few = TINY if job.tiny else ("train.max_steps=20",)
                warm_up = job.train("cifar10-fast", *overrides, *few)
                job.report.add(warm_up.seconds, name, "warm_up_seconds")
                figures = _trained(job, overrides, 0)
                job.report.add(figures, name, "seed 0")
                if figures["accuracy"]["views"] >= GOAL:
                    reached[name] = figures["stage_seconds"]
    _seeds(job, "the preset", 3)
    if reached:
        _seeds(job, min(reached, key=lambda name: reached[name]), SEEDS)
    else:
        job.report.add(f"no candidate came to {GOAL:.0%}", "time to the goal")


def _seeds(job: Job, name: str, count: int) -> None:
    """Further seeds of one candidate, and the mean of all."""
    found: list[dict[str, Any]] = []
    first = job.report.figures.get(name, {}).get("seed 0")
    found += [first] if first else []
    for seed in range(1, 2 if job.tiny else count):
        if job.allows(8, name, f"seed {seed}"):
            with job.report.attempt(name, f"seed {seed}"):
                found.append(_trained(job, CANDIDATES[name], seed))
                job.report.add(found[-1], name, f"seed {seed}")
    if found:
        kinds = ("plain", "mirrored", "views")
        means = {kind: float(np.mean([each["accuracy"][kind] for each in found])) for kind in kinds}
        keys = ("stage_seconds", "steps_seconds")
        seconds = {key: spread([each[key] for each in found]) for key in keys}
        job.report.add({"mean_accuracy": means, **seconds}, name, "all seeds")


def _trained(job: Job, overrides: tuple[str, ...], seed: int) -> dict[str, Any]:
    settings = [*overrides, f"train.seed={seed}", *(TINY if job.tiny else ())]
    training = job.train("cifar10-fast", *settings)
    started = time.perf_counter()
    accuracy = _accuracies(job, job.resolved("cifar10-fast", *settings), training.result["weights"])
    return {
        "accuracy": accuracy,
        "stage_seconds": training.seconds,
        "steps_seconds": training.result["fit"]["seconds"],
        "evaluation_seconds": time.perf_counter() - started,
        "images_per_second": training.result["fit"]["images_per_second"],
    }


def _accuracies(job: Job, resolved: ResolvedConfig, weights: str) -> dict[str, float]:
    """On the test images: plain, with their mirror images, and also moved by a pixel.

    The last is airbench's: the mean of both sides, half of the image as it is and half of two
    copies that lie one pixel up and left, and one down and right.
    """
    data = job.data
    model = resolved.model.build(data.shape, len(data.classes))
    net = network.Network(model, data, resolved.config.dataset.normalize)
    net.load_state_dict(checkpoint.load(Path(weights))["network"])
    net.to(job.device)
    images = torch.from_numpy(np.array(data.test.samples)).to(job.device)
    labels = data.test.labels

    def logits(view: torch.Tensor) -> np.ndarray:
        found = predict(net, view.contiguous(), labels, device=job.device)
        return np.asarray(found.logits)

    def both_sides(view: torch.Tensor) -> np.ndarray:
        return np.asarray((logits(view) + logits(view.flip(-1))) / 2)

    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect").byte()
    height, width = images.shape[-2:]
    moved = [padded[:, :, at : at + height, at : at + width] for at in (0, 2)]
    mirrored = both_sides(images)
    views = {
        "plain": logits(images),
        "mirrored": mirrored,
        "views": (mirrored + sum(both_sides(view) for view in moved) / 2) / 2,
    }
    return {name: float(np.mean(each.argmax(1) == labels)) for name, each in views.items()}


def airbench(job: Job) -> None:
    """The files of airbench that were given, on the same images; else what is published."""
    job.report.add(PUBLISHED, "published, on an A100 with torch 2.4.1")
    if not job.others:
        job.report.add("no file of it was given", "measured")
        return
    folder = job.work / "airbench"
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        split = getattr(job.data, part)
        images = torch.from_numpy(np.array(split.samples)).permute(0, 2, 3, 1).contiguous()
        labels = torch.from_numpy(np.array(split.labels))
        target = folder / "cifar10" / f"{part}.pt"
        torch.save({"images": images, "labels": labels, "classes": list(job.data.classes)}, target)
    for number, file in enumerate(job.others):
        share = job.left / (len(job.others) - number)
        if job.allows(20, file.name):
            with job.report.attempt(file.name):
                job.report.add(_airbench(file, folder, share), file.name)


def _airbench(file: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a copy with fewer repetitions; what it had printed counts where time runs out."""
    source, changed = re.subn(
        r"range\(\d+\)\]\)", f"range({AIRBENCH_RUNS})])", file.read_text("utf-8")
    )
    copy, printed = folder / file.name, folder / f"{file.stem}.log"
    copy.write_text(source, "utf-8")
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    with printed.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, copy.name],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | str = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()  # those of the compiler
            process.kill()
            process.wait()
            status = f"stopped after {seconds:.0f} s"
    text = printed.read_text("utf-8", "replace")
    print(text[-3000:], flush=True)
    runs = results(text)
    figures: dict[str, Any] = {
        "status": status,
        "whole_process_seconds": time.monotonic() - started,
        "repetitions_replaced": changed,
        "runs": max(0, len(runs) - 1),
    }
    if status:
        figures["printed_last"] = text[-300:]
    if len(runs) > 1:  # the first is its warm-up
        figures["seconds"] = spread([run["seconds"] for run in runs[1:]])
        figures["warm_up_seconds"] = runs[0]["seconds"]
        figures["mean_accuracy"] = float(np.mean([run["accuracy"] for run in runs[1:]]))
    return figures


def results(text: str) -> list[dict[str, float]]:
    """The final row of each run in airbench's table."""
    columns: list[str] = []
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "tta_val_acc" in cells:
            columns = cells
        elif columns and len(cells) == len(columns) and "eval" in cells:
            accuracy, seconds = cells[columns.index("tta_val_acc")], cells[-1]
            found.append({"accuracy": float(accuracy), "seconds": float(seconds)})
    return found
