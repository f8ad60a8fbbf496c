"""The batches of a training split: their order, their samples on the device, augmented.

Augmentations draw from torch's generators when a batch is taken, never ahead of it: a checkpoint
between two batches holds their state. Encoded images are decoded ahead; which part of one is a
function of seed, epoch, image and its place in the epoch's order, which seed and epoch determine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from torchyard.core.audit.exclusion import excluded_samples
from torchyard.core.config.schema import RunConfig, TrainConfig
from torchyard.core.data.dataset import PreparedDataset, Split, rows_on
from torchyard.core.data.images.photos import EncodedSamples, Part, Wanted, decoding_threads
from torchyard.core.data.splitting import stratified_split
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.figures import Figures
from torchyard.core.hosting.params import Augmentation, AugmentationParams, Mixing, MixingParams
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.sampling import sampled_order


@dataclass(frozen=True)
class MixedTargets:
    """An augmentation that changes targets, too.

    Attributes:
        mix: what its plugin built.
        num_classes: K of the targets N x K.
    """

    mix: Mixing
    num_classes: int

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix inputs and targets; class indices become one-hot vectors first."""
        if not targets.is_floating_point():
            targets = torch.nn.functional.one_hot(targets, self.num_classes).float()
        return self.mix(inputs, targets, indices, epoch)


def build_augmentation(
    plugin: AugmentationParams, input_shape: tuple[int, ...], num_classes: int
) -> Augmentation | MixedTargets:
    """What changes a batch of such samples.

    Raises:
        ValueError: the plugin cannot take them.
    """
    if isinstance(plugin, MixingParams):
        return MixedTargets(plugin.build(input_shape), num_classes)
    return cast(Augmentation, plugin.build(input_shape))


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained on.

    Attributes:
        train: the samples to learn from.
        validation: held-out samples; the epoch with their best `train.monitor` is kept.
        augmentations: applied to every training batch, in this order.
        device: where the samples live: the network's, or the CPU where they do not fit.
        figures: that are computed of the validation.
        region: of encoded images, draws the part that is decoded: (height, width, generator) to
            (top, left, height, width). None: all of it, as it is evaluated.
    """

    train: Split
    validation: Split | None
    augmentations: Sequence[Augmentation | MixedTargets]
    device: torch.device
    figures: Figures = field(default_factory=Figures)
    region: Callable[[int, int, np.random.Generator], Part] | None = None


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch.

    Attributes:
        inputs: N x shape as the samples are stored, augmented, on the network's device.
        targets: the labels, or float32 N x classes where an augmentation mixes them.
        labels: int64 N, the samples' own class indices.
        size: samples of the whole batch, all processes together.
        weight: of this part's mean loss, so that the mean over the processes of weight x mean
            loss is the mean of the whole batch; 0 where the part is only a stand-in.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    size: int
    weight: float


@dataclass(frozen=True)
class Shard:
    """The samples of one process's part of a batch: their indices; else as in `Batch`.

    Attributes:
        places: of encoded images, their places in the epoch: a sampler may take one repeatedly.
    """

    index: torch.Tensor
    size: int
    weight: float
    places: torch.Tensor | None = None


def training_splits(
    prepared: PreparedDataset, config: RunConfig, folder: Path | None = None
) -> tuple[Split, Split | None]:
    """What is trained on, and what is held out for validation.

    Args:
        folder: of the run, which keeps what is excluded; a resumed one excludes the same.

    Raises:
        UserError: nothing can be held out, or nothing is left.
        RunError: what is excluded cannot be read.
    """
    train, validation, settings = prepared.train, prepared.validation, config.train
    if config.dataset.exclude:
        excluded = excluded_samples(prepared, folder)
        train = replace(train, indices=np.setdiff1d(np.arange(len(train.labels)), excluded))
        if not len(train):
            raise UserError("dataset.exclude=audit: all training samples are in another split, too")
    if validation is None and settings.validation:
        seed = 0 if settings.seed == "per_run" else settings.seed
        kept = np.arange(len(train.labels)) if train.indices is None else train.indices
        groups = None if train.groups is None else train.groups[kept]
        try:
            rest, held_out = stratified_split(train.labels[kept], settings.validation, seed, groups)
        except ValueError as error:
            raise UserError(f"train.validation={settings.validation:g}: {error}") from None
        validation = replace(train, indices=kept[held_out])
        train = replace(train, indices=kept[rest])
    return train, validation


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches per epoch. A last batch of one sample is left out: batch norm has no variance."""
    full, rest = divmod(samples, batch_size)
    return max(1, full + (1 if rest > 1 or (rest == 1 and batch_size == 1) else 0))


def part_count(samples: int, size: int) -> int:
    """Into how many parts of about `size` a batch is split; none is a single sample, unless asked.

    Batch norm has no variance of one sample.
    """
    count = -(-samples // size)
    return count if size == 1 else min(count, max(1, samples // 2))


def total_steps(samples: int, settings: TrainConfig) -> int:
    """Batches of a whole run."""
    steps = steps_per_epoch(samples, settings.known_batch_size) * settings.epochs
    return min(steps, settings.max_steps or steps)


class Batches:
    """The training split in batches.

    Args:
        data: the samples and how they are augmented.
        settings: batch size, seed and sampler.
        device: the network's.
    """

    def __init__(self, data: TrainingData, settings: TrainConfig, device: torch.device) -> None:
        self._data, self._device = data, device
        self._size, self._seed = settings.known_batch_size, settings.drawn_seed
        self._sampler = settings.sampler
        self._workers = settings.workers or decoding_threads(settings.processes_here)
        # The memory map or its file on the CPU, copied once to a GPU; encoded images stay.
        samples = data.train.samples
        self._photos = samples if isinstance(samples, EncodedSamples) else None
        self._samples = None if self._photos else rows_on(samples, data.device)
        self._labels = torch.from_numpy(data.train.labels).to(data.device)

    def epoch(self, epoch: int, first: int, end: int, strategy: Strategy) -> Iterator[Batch]:
        """The batches `first` to `end` - 1 of an epoch, counted from 0, for this process."""
        order = self._order(epoch)

        def shards() -> Iterator[Shard]:
            for number in range(first, end):
                start = number * self._size
                whole = order[start : start + self._size]
                if self._photos is None:
                    index, weight = strategy.shard(whole)
                    yield Shard(index, len(whole), weight)
                else:
                    places, weight = strategy.shard(torch.arange(start, start + len(whole)))
                    yield Shard(order[places], len(whole), weight, places)

        for inputs, shard in self._read(shards(), epoch):
            yield Batch(*self._augmented(inputs, shard.index, epoch), shard.size, shard.weight)

    def first(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, targets and labels of the first samples of the first epoch, as in training."""
        # The random numbers drawn here must not change those of the training.
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            index = self._order(0)[:size]
            whole = Shard(index, len(index), 1.0, torch.arange(len(index)))
            [(inputs, _)] = self._read([whole], 0)
            return self._augmented(inputs, index, 0)

    def _order(self, epoch: int) -> torch.Tensor:
        train = self._data.train
        order = sampled_order(train, self._sampler, self._seed, epoch)
        if train.indices is not None:
            order = torch.from_numpy(train.indices)[order]
        return order.to(self._data.device)

    def _read(self, shards: Iterable[Shard], epoch: int) -> Iterator[tuple[torch.Tensor, Shard]]:
        """The samples of each shard, where the data are."""
        if self._photos is None:
            assert self._samples is not None
            for shard in shards:
                yield self._samples.index_select(0, shard.index), shard
        else:
            wanted = (self._wanted(shard, epoch) for shard in shards)
            for pixels, shard in self._photos.decoded(wanted, self._workers):
                yield torch.from_numpy(pixels), shard

    def _wanted(self, shard: Shard, epoch: int) -> Wanted[Shard]:
        """Which images to decode, and which part of each."""
        indices, parts = shard.index.numpy(), None
        if self._data.region is not None:
            assert shard.places is not None
            drawn = zip(indices.tolist(), shard.places.tolist(), strict=True)
            parts = [self._part(index, place, epoch) for index, place in drawn]
        return Wanted(indices, parts, shard)

    def _part(self, index: int, place: int, epoch: int) -> Part:
        assert self._photos is not None
        assert self._data.region is not None
        generator = np.random.default_rng((self._seed, epoch, index, place))
        height, width = self._photos.size(index)
        top, left, rows, columns = part = self._data.region(height, width, generator)
        if not (0 <= top < top + rows <= height and 0 <= left < left + columns <= width):
            raise RunError(
                f"augmentations.0: the region {part} does not lie in an image of {height}x{width}: "
                "it is (top, left, height, width)"
            )
        return part

    def _augmented(
        self, inputs: torch.Tensor, index: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = inputs.to(self._device, non_blocking=True)
        targets = labels = self._labels.index_select(0, index).to(self._device, non_blocking=True)
        for augment in self._data.augmentations:
            indices = index.to(self._device)
            if isinstance(augment, MixedTargets):
                inputs, targets = augment(inputs, targets, indices, epoch + 1)
            else:
                inputs = augment(inputs, indices, epoch + 1)
        return inputs, targets, labels
