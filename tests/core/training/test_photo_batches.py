"""Batches of photos: decoded ahead in parts that depend on nothing but seed, epoch and image."""

import threading

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import nn

from tests.core.preparation.raw_data import image_split, prepared, raw, saved
from tests.core.small_training import CPU, same, weights
from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import Split
from torchyard.core.errors import RunError
from torchyard.core.training import batches, loop, sampling
from torchyard.core.training.events import RunningLoss
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState

SHAPE = (3, 20, 20)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """22 photos of two classes, by their brightness, in several sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    pictures = [
        Image.fromarray(
            (rng.integers(0, 90, (30 + number, 44, 3)) + 150 * (number % 2)).astype(np.uint8)
        )
        for number in range(22)
    ]
    files = saved(folder, *pictures, format="JPEG")
    content = raw(image_split(files, SHAPE), image_split(files[:2], SHAPE))
    return prepared(content, folder / "cache", storage="encoded").train


def region(height, width, generator):
    """A random square of half the height."""
    side = height // 2
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    return int(top), int(left), side, side


def noise(samples, indices, epoch):
    return samples // 2 + torch.randint(0, 9, samples.shape, dtype=torch.uint8)


def make_batches(split, draw=region, augmentations=(), **settings):
    settings = TrainConfig(**({"batch_size": 6, "seed": 3} | settings))
    data = batches.TrainingData(split, None, augmentations, CPU, region=draw)
    return batches.Batches(data, settings, CPU)


def taken(split, epoch=0, first=0, strategy=None, **settings):
    torch.manual_seed(0)
    found = make_batches(split, **settings).epoch(epoch, first, 4, strategy or Strategy())
    return [(batch.inputs.numpy(), batch.targets.numpy()) for batch in found]


def equal(first, second):
    return len(first) == len(second) and all(
        np.array_equal(one, other)
        for pair, others in zip(first, second, strict=True)
        for one, other in zip(pair, others, strict=True)
    )


def test_any_number_of_workers_makes_the_same_batches(split):
    one = taken(split, workers=1, augmentations=[noise])
    assert [len(inputs) for inputs, _ in one] == [6, 6, 6, 4]
    assert one[0][0].shape[1:] == SHAPE
    assert one[0][0].dtype == np.uint8
    for workers in (2, 3):
        assert equal(one, taken(split, workers=workers, augmentations=[noise]))


def test_parts_change_with_seed_and_epoch_and_not_with_where_it_resumes(split):
    whole = taken(split)
    assert equal(whole[2:], taken(split, first=2))
    assert not equal(whole, taken(split, seed=4))
    order = sampling.epoch_order(22, 3, 0), sampling.epoch_order(22, 3, 1)
    images = [np.concatenate([inputs for inputs, _ in taken(split, epoch=epoch)])
              for epoch in (0, 1)]  # fmt: skip
    by_image = [pixels[place.argsort()] for pixels, place in zip(images, order, strict=True)]
    assert not any(np.array_equal(*pair) for pair in zip(*by_image, strict=True))


def test_without_regions_the_images_are_those_that_are_evaluated(split):
    chosen = np.array([1, 4, 5, 8, 9, 12, 17, 20])
    part = Split(split.samples, split.labels, chosen)
    found = make_batches(part, None, batch_size=8).epoch(0, 0, 1, Strategy())
    order = chosen[sampling.epoch_order(8, 3, 0)]
    [batch] = list(found)
    np.testing.assert_array_equal(batch.inputs.numpy(), split.samples[order])
    np.testing.assert_array_equal(batch.targets.numpy(), split.labels[order])


def test_the_first_samples_are_those_of_the_first_batch(split):
    torch.manual_seed(0)
    samples, _, labels = make_batches(split).first(4)
    [(inputs, targets), *_] = taken(split)
    np.testing.assert_array_equal(samples.numpy(), inputs[:4])
    np.testing.assert_array_equal(labels.numpy(), targets[:4])


def test_an_image_that_is_drawn_twice_gets_two_parts(split):
    rare = Split(split.samples, split.labels, np.array([0, 2, 4, 6, 8, 10, 12, 14, 16, 3]))
    found = make_batches(rare, sampler="balanced", batch_size=10).epoch(0, 0, 1, Strategy())
    [batch] = list(found)
    parts = batch.inputs[batch.labels == 1]
    assert len(parts) == 5  # of the one image of its class
    assert len(np.unique(parts.numpy(), axis=0)) == 5


def test_processes_share_the_same_parts(split):
    class Second(Strategy):
        rank, world_size = 1, 2

        def shard(self, index):
            return index[1::2], len(index[1::2]) * 2 / len(index)

    for (whole, _), (half, _) in zip(taken(split), taken(split, strategy=Second()), strict=True):
        np.testing.assert_array_equal(half, whole[1::2])


@pytest.mark.parametrize("part", [(0, 0, 99, 9), (-1, 0, 9, 9), (0, 0, 0, 9), (0, 40, 9, 9)])
def test_a_region_outside_of_the_photo_is_refused(split, part):
    with pytest.raises(RunError, match=r"augmentations\.0: the region .* not lie in .*x44"):
        taken(split, draw=lambda *_: part)


def fit(split, folder, emit=lambda event: None, **settings):
    torch.manual_seed(1)

    class Scale(nn.Module):
        def forward(self, samples):
            return samples.float() / 255 - 0.5

    network = nn.Sequential(Scale(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(1200, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    settings = {"epochs": 3, "batch_size": 4, "seed": 3, "log_every": 2} | settings
    folder.mkdir(exist_ok=True)
    loop.fit(
        TrainingState(network, optimizer, schedule, device=CPU),
        nn.CrossEntropyLoss(),
        batches.TrainingData(split, None, [noise], CPU, region=region),
        TrainConfig(**settings),
        strategy=Strategy(),
        whole=None,
        folder=folder,
        emit=emit,
    )
    return weights(network)


def test_training_that_is_cut_short_in_an_epoch_ends_with_the_same_weights(
    split, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point
    whole = fit(split, tmp_path / "whole", workers=1)

    class StopHere(Exception):  # noqa: N818 - it stands for SIGKILL
        pass

    def stop(event):
        if isinstance(event, RunningLoss) and event.step == 10:
            raise StopHere

    with pytest.raises(StopHere):
        fit(split, tmp_path / "cut", emit=stop, workers=3)
    assert same(whole, fit(split, tmp_path / "cut", workers=2))


def test_decoding_starts_no_process_and_its_threads_end_with_the_epoch(split, tmp_path):
    before, seen = {*psutil.Process().children(recursive=True)}, []

    def look(event):
        names = [thread.name for thread in threading.enumerate()]
        seen.append(sum(name.startswith("decoder") for name in names))
        assert {*psutil.Process().children(recursive=True)} <= before  # others may end meanwhile

    fit(split, tmp_path / "run", emit=look, workers=2)
    assert max(seen) == 2
    assert not [each for each in threading.enumerate() if each.name.startswith("decoder")]
