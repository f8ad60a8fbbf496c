"""Images per second in training: ours through the train stage, bare loops, and other libraries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer step would import it, within a warm-up
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gpu.job import Job, Stopwatch, spread
from benchmarks.peers.job import LEARNING_RATE, MOMENTUM
from benchmarks.peers.networks import NETWORKS

CELLS = (("lenet", 128), ("resnet18", 128), ("lenet", 4), ("resnet18", 1024), ("lenet", 512))
TINY_CELLS = (("lenet", 16),)
REPEATS = 3
RUN_SECONDS = 1.2  # of each of ours
LOADER_WORKERS = 4
LIBRARIES = {"accelerate": "accelerate", "Lightning": "pytorch_lightning"}
NO_GRAPH = ["train.compile=false"]
HALF = ["precision=bfloat16", "train.channels_last=true"]

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def measure(job: Job) -> None:
    """Every contender in every cell; the libraries come last, for they may not be there."""
    tensors = _tensors(job)
    for name, batch_size in TINY_CELLS if job.tiny else CELLS:
        given = (job, name, batch_size)
        contenders: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": partial(_ours, *given, []),
            "ours, without a graph": partial(_ours, *given, NO_GRAPH),
            "ours, bfloat16, channels last": partial(_ours, *given, HALF),
            "bare loop": partial(_bare, *given, *tensors),
            "bare loop, loss.item() a step": partial(_bare, *given, *tensors, read_losses=True),
            "DataLoader": partial(_loader, *given, *tensors),
            "accelerate": partial(_accelerate, *given, *tensors),
            "Lightning": partial(_lightning, *given, *tensors),
        }
        for contender, run in contenders.items():
            keys = f"{name} at {batch_size}", contender
            library = LIBRARIES.get(contender)
            if library and importlib.util.find_spec(library) is None:
                job.report.add("not installed", *keys)
            elif job.allows(5, *keys):
                with job.report.attempt(*keys):
                    job.report.add(run(), *keys)


def _ours(job: Job, name: str, batch_size: int, overrides: list[str]) -> dict[str, Any]:
    """The train stage, several times: its steps alone, and with all that is beside them."""

    def train(steps: int) -> Any:
        settings = [f"model={name}", f"train.batch_size={batch_size}", f"train.max_steps={steps}"]
        settings += [f"train.log_every={max(1, steps // 8)}", "train.epochs=100000"]
        return job.train("cifar10", *settings, *overrides)

    warm_up = train(4 if job.tiny else 128)
    pace = spread(warm_up.rates(batch_size))["greatest"]
    steps = 4 if job.tiny else max(32, int(RUN_SECONDS * pace / batch_size))
    runs = [train(steps) for _ in range(1 if job.tiny else REPEATS)]
    placement = runs[0].result["placement"]
    return {
        "steps": spread([rate for run in runs for rate in run.rates(batch_size)]),
        "stage": spread([steps * batch_size / run.seconds for run in runs]),
        "images": steps * batch_size,
        "execution": placement["execution"],
        "compiled": placement["compiled"],
        "data_device": placement["data_device"],
        "peak_gpu_memory_mib": runs[0].result["peaks"].get("peak_gpu_memory_mib"),
    }


def _tensors(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The training images in host memory, normalized as the tutorial does, and labels."""
    split = job.data.train
    images = torch.from_numpy(np.array(split.samples)).float().div_(127.5).sub_(1)
    return images, torch.from_numpy(np.array(split.labels))


def _made(name: str, job: Job) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(job.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    return network, optimizer


def _bare(
    job: Job,
    name: str,
    batch_size: int,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    read_losses: bool = False,
) -> dict[str, float]:
    """Everything on the device, batches by indexing; the loss is read each step, or never."""
    images, labels = images.to(job.device), labels.to(job.device)

    def batches() -> Batches:
        while True:
            order = torch.randperm(len(images), device=job.device)
            for index in order.split(batch_size):  # type: ignore[no-untyped-call]
                yield images[index], labels[index]

    return _plain_loop(job, name, batch_size, batches(), read_losses)


def _plain_loop(
    job: Job, name: str, batch_size: int, batches: Batches, read_losses: bool = False
) -> dict[str, float]:
    network, optimizer = _made(name, job)
    network.train()
    total = torch.zeros((), device=job.device)
    read, watch = 0.0, Stopwatch(job, batch_size)
    going = True
    while going:
        inputs, targets = next(batches)
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if read_losses:
            read += loss.item()
        else:
            total += loss.detach()
        going = watch.press()
    return watch.result


def _workers(job: Job) -> int:
    return 0 if job.tiny else min(LOADER_WORKERS, os.cpu_count() or 1)


def _dataloader(
    job: Job, batch_size: int, images: torch.Tensor, labels: torch.Tensor
) -> DataLoader[Any]:
    """As the tutorials for GPUs have it: shuffled, worker processes, pinned memory."""
    workers = _workers(job)
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=job.device.type == "cuda",
        drop_last=True,
    )


def _loader(
    job: Job, name: str, batch_size: int, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    loader = _dataloader(job, batch_size, images, labels)

    def batches() -> Batches:
        while True:
            for inputs, targets in loader:
                moved = (each.to(job.device, non_blocking=True) for each in (inputs, targets))
                yield tuple(moved)

    return _plain_loop(job, name, batch_size, batches())


def _accelerate(
    job: Job, name: str, batch_size: int, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    from accelerate import Accelerator  # type: ignore[import-not-found]

    accelerator = Accelerator(cpu=job.device.type == "cpu")
    loader = _dataloader(job, batch_size, images, labels)
    network, optimizer, loader = accelerator.prepare(*_made(name, job), loader)
    network.train()
    watch = Stopwatch(job, batch_size)
    total = torch.zeros((), device=job.device)
    while True:
        for inputs, targets in loader:
            loss = F.cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total += loss.detach()
            if not watch.press():
                return watch.result


def _lightning(
    job: Job, name: str, batch_size: int, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """At its fastest: no logger, no progress bar, no checkpoint."""
    import pytorch_lightning as lightning  # type: ignore[import-not-found]

    watch = Stopwatch(job, batch_size)

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network, _ = _made(name, job)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.network(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    class Windows(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = not watch.press()

    trainer = lightning.Trainer(
        max_epochs=100_000,
        accelerator="cpu" if job.device.type == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Windows()],
    )
    trainer.fit(Classifier(), _dataloader(job, batch_size, images, labels))
    return watch.result
