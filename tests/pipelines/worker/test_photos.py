"""Runs on photos: the same weights however they are decoded, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.events import TrainingBatch
from torchyard.pipelines.worker import stages
from torchyard.pipelines.worker.stages import evaluation, preparation, training

PLUGINS = '''
from torchyard import RegionParams, hookimpl

class Square(RegionParams):
    """A random square of the photo."""
    outside: bool = False
    def region(self, height, width, generator):
        side = min(height, width) // 2 + height * self.outside
        return int(generator.integers(min(height, width) // 2)), 0, side, side
    def build(self, input_shape):
        return lambda samples, indices, epoch: samples

@hookimpl
def register_augmentations(register):
    register("square", Square)
'''


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The settings of a run on photos of two classes, prepared; threads are put back."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 0), ("light", 120)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(12):
            size = (80 + 7 * number, 120 - 5 * number, 3)
            pixels = rng.integers(0, 120, size) + level
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"{number}.jpg", quality=90)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "squares.py").write_text(PLUGINS)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path / "plugins"))
    host.cache_clear()
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    path = str(tmp_path / "images")
    yield {
        "dataset": {"name": "image_folder", "path": path, "image_size": 72},
        "augmentations": [{"name": "square"}, {"name": "horizontal_flip"}],
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"epochs": 2, "batch_size": 6, "threads": 1, "validation": 0.2},
        "device": "cpu",
    }
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn
    host.cache_clear()


def quiet(event):
    pass


def train(settings, folder, emit=quiet, **overrides):
    settings = settings | {"train": settings["train"] | overrides}
    data = preparation.prepare(settings, str(folder / "cache"), quiet)["folder"]
    target = folder / f"run{len(list(folder.glob('run*')))}"
    target.mkdir()
    return settings, data, training.train(settings, data, str(target), emit), target


def test_any_number_of_workers_trains_the_same_weights(photos, tmp_path):
    events = []
    _, data, first, target = train(photos, tmp_path, events.append, workers=1)
    prepared = PreparedDataset.open(Path(data))
    assert (prepared.encoded, prepared.shape) == (True, (3, 72, 72))
    assert first["placement"]["data_device"] == "cpu"
    for workers in (2, 3):
        again = train(photos, tmp_path, workers=workers)[2]
        assert again["weights_digest"] == first["weights_digest"]
    [shown] = [event for event in events if isinstance(event, TrainingBatch)]
    assert np.load(shown.file)["samples"].shape[1:] == (3, 72, 72)
    file = target / "predictions.npz"
    evaluation.evaluate(photos, data, first["weights"], str(file), emit=quiet)
    assert len(Predictions.load(file).logits) == prepared.counts["test"]


def test_steps_can_end_within_an_epoch(photos, tmp_path):
    done = train(photos, tmp_path, max_steps=4)[2]
    assert done["fit"]["steps"] == 4


def test_a_region_must_be_the_first_and_lie_in_the_photo(photos, tmp_path):
    late = photos | {"augmentations": photos["augmentations"][::-1]}
    message = r"^augmentations\.1: 'square': must be the first: of photos, nothing but"
    with pytest.raises(UserError, match=message):
        train(late, tmp_path)
    early = late | {"dataset": late["dataset"] | {"storage": "encoded"}}
    with pytest.raises(UserError, match=message):  # before anything is prepared
        stages.check(early, str(tmp_path / "none"), emit=quiet)
    outside = photos | {"augmentations": [{"name": "square", "outside": True}]}
    with pytest.raises(UserError, match=r"'square': draws .* of 375x500: not a part of it"):
        train(outside, tmp_path)
    arrays = late | {"dataset": late["dataset"] | {"storage": "arrays"}}
    assert train(arrays, tmp_path)[2]["fit"]["epochs"] == 2


def test_photos_that_are_damaged_while_it_trains_end_it_with_a_message(photos, tmp_path):
    settings = photos | {"train": photos["train"] | {"epochs": 50}}
    data = preparation.prepare(settings, str(tmp_path / "cache"), quiet)["folder"]
    pack = Path(data) / "train_images.bin"

    def damage(event):
        if getattr(event, "epoch", 0) == 1 and pack.stat().st_size:
            pack.write_bytes(b"")

    with pytest.raises(RunError, match=r"train_images\.bin is damaged: it ends too early"):
        training.train(settings, data, str(tmp_path), damage)


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(photos, tmp_path):
    drawn = photos | {"augmentations": [{"name": "square"}]}  # a flip is each process's own
    one = train(drawn, tmp_path, epochs=1)[2]
    two = train(drawn, tmp_path, epochs=1, parallel="ddp", processes=2)[2]
    assert two["fit"]["steps"] == one["fit"]["steps"]
    states = [torch.load(done["weights"], weights_only=True)["network"] for done in (one, two)]
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-3, atol=1e-4)
