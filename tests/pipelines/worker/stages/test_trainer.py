"""Trainings of one process: what they are made of, and what they do not train on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.worker.conftest import config
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.splitting import stratified_split
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.events import EpochDone
from torchyard.core.training.execution import settings as execution_settings
from torchyard.pipelines.worker.stages import preparation, trainer, training


@pytest.fixture
def trained(tmp_path, cache):
    """Train on digits in this process; returns what the stage returns."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def train(*overrides):
        settings = config("train.epochs=1", "train.max_steps=3", "train.threads=1", *overrides)
        data = preparation.prepare(settings, cache, print)["folder"]
        return training.train(settings, data, str(tmp_path), lambda event: None)

    yield train
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn


def test_a_torch_that_no_test_has_seen_trains_without_its_private_parts(trained, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a private part of torch is used")

    monkeypatch.setattr(execution_settings, "WORTH_COMPILING", 1)
    monkeypatch.setattr(execution_settings, "WORTH_ONEDNN", 1e12)
    monkeypatch.setattr(execution_settings, "trim_kernels", refuse)
    monkeypatch.setattr(trainer, "CompiledStep", refuse)
    with pytest.raises(AssertionError):
        trained("device=cpu")
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    done = trained("device=cpu")
    assert done["fit"]["steps"] == 3
    assert done["placement"]["execution"] == (
        "float32, 1 thread, plain torch: "
        "torch 2.99.0 is not one of the tested versions 2.11 to 2.15"
    )
    assert done["placement"]["compiled"] == "false"
    with pytest.raises(UserError, match=r"^train\.compile: cannot be had: torch 2\.99\.0 is not"):
        trained("device=cpu", "train.compile=true")


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_validation_split_of_its_own_is_validated_on(tmp_path, share):
    for part, count in (("train", 6), ("val", 2), ("test", 1)):
        for label, colour in (("dark", 10), ("light", 240)):
            (tmp_path / "i" / part / label).mkdir(parents=True)
            for number in range(count):
                shade = 250 - colour if part == "val" else colour  # its labels are wrong
                image = Image.new("RGB", (4, 4), (shade - number, shade, shade))
                image.save(tmp_path / "i" / part / label / f"{number}.png")
    settings = {
        "dataset": {"name": "image_folder", "path": str(tmp_path / "i")},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"epochs": 2, "batch_size": 4, "validation": share, "threads": 1},
        "device": "cpu",
    }
    events = []
    threads = torch.get_num_threads()
    try:
        data = preparation.prepare(settings, str(tmp_path), events.append)["folder"]
        trained = training.train(settings, data, str(tmp_path), events.append)
    finally:
        torch.set_num_threads(threads)
    assert PreparedDataset.open(Path(data)).counts == {"train": 12, "validation": 4, "test": 2}
    assert trained["fit"]["steps"] == 2 * 3  # of all 12 training images
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert (epochs[-1].accuracy, epochs[-1].validation_accuracy) == (1, 0)


@pytest.mark.parametrize("deterministic", [True, False])
def test_training_is_deterministic_where_that_is_asked_for(tmp_path, deterministic):
    settings = {
        "dataset": {"name": "random_vectors"},
        "model": {"name": "linear"},
        "train": {"epochs": 1, "deterministic": deterministic},
        "device": "cpu",
    }
    modes = []

    def emit(event):
        if isinstance(event, EpochDone):
            modes.append(torch.are_deterministic_algorithms_enabled())

    data = preparation.prepare(settings, str(tmp_path), emit)["folder"]
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(not deterministic)  # as another run left it
    try:
        training.train(settings, data, str(tmp_path), emit)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = True
    assert modes == [deterministic]


def test_samples_that_are_held_out_are_not_trained_on(tmp_path):
    settings = {
        "dataset": {"name": "random_vectors"},
        "model": {"name": "linear"},
        "train": {"epochs": 2, "validation": 0.3, "seed": 4},
        "device": "cpu",
    }
    folder = Path(preparation.prepare(settings, str(tmp_path), print)["folder"])
    samples = np.load(folder / "train_samples.npy", mmap_mode="r+")
    labels = np.load(folder / "train_labels.npy")
    rest, held_out = stratified_split(labels, 0.3, 4)
    samples[held_out] = 1e30  # a step with one of them would leave weights as large
    samples.flush()
    threads = torch.get_num_threads()
    losses = []

    def emit(event):
        if isinstance(event, EpochDone):
            losses.append((event.loss, event.validation_loss))

    try:
        training.train(settings, str(folder), str(tmp_path), emit)
    finally:
        torch.set_num_threads(threads)
    assert len(rest) + len(held_out) == len(labels)
    assert len(losses) == 2
    assert all(trained < 10 < 1e20 < held for trained, held in losses)


PEOPLE = '''
from torchyard import *
from torchyard import hookimpl

class People(DatasetParams):
    """Vectors of people, of whom each has two."""
    people: int = 20
    def build(self, downloads):
        import numpy as np
        vectors = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
        part = ArraySplit(vectors, (vectors[:, 0] > 0).astype(int))
        return RawData(["no", "yes"], part, part,
                       groups={"train": [f"person {n % self.people}" for n in range(40)]})

@hookimpl
def register_datasets(register):
    register("people", People)
'''


@pytest.mark.parametrize("people", [20, 1])
def test_groups_are_held_out_whole(tmp_path, monkeypatch, people):
    (tmp_path / "people.py").write_text(PEOPLE)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    settings = {
        "dataset": {"name": "people", "people": people},
        "model": {"name": "linear"},
        "train": {"epochs": 1, "validation": 0.25},
        "device": "cpu",
    }
    used, fit = {}, trainer.loop.fit

    def watched(state, loss, data, *rest):
        used.update(train=data.train, validation=data.validation)
        return fit(state, loss, data, *rest)

    monkeypatch.setattr(trainer.loop, "fit", watched)
    folder = preparation.prepare(settings, str(tmp_path), print)["folder"]
    if people == 1:
        with pytest.raises(UserError, match="one group cannot be divided"):
            training.train(settings, folder, str(tmp_path), print)
        return
    threads = torch.get_num_threads()
    training.train(settings, folder, str(tmp_path), lambda event: None)
    torch.set_num_threads(threads)
    host.cache_clear()
    train, held_out = (used[part].groups[used[part].indices] for part in ("train", "validation"))
    assert not {*train} & {*held_out}
    assert len(train) + len(held_out) == 40
    assert len(held_out) == pytest.approx(10, abs=2)


def test_what_is_done_about_unbalanced_classes_is_said(tmp_path):
    settings = {
        "dataset": {"name": "digits", "image_size": 8},
        "model": {"name": "linear"},
        "loss": {"name": "cross_entropy", "weight": "balanced"},
        "train": {"epochs": 1, "sampler": "balanced", "max_steps": 2, "validation": 0.5},
        "device": "cpu",
    }
    threads = torch.get_num_threads()
    folder = preparation.prepare(settings, str(tmp_path), print)["folder"]
    done = training.train(settings, folder, str(tmp_path), lambda event: None)
    torch.set_num_threads(threads)
    labels = PreparedDataset.open(Path(folder)).train.labels
    rest, _ = stratified_split(labels, 0.5, 0)
    weights = len(rest) / (10 * np.bincount(labels[rest]))
    numbers = ",".join(f"{weight:.5g}" for weight in weights)
    assert done["balance"] == {
        "balance": f"loss.weight=balanced: classes weighted {weights.min():.3g} to "
        f"{weights.max():.3g}; classes drawn equally often",
        "loss_filled_in": f"loss.weight=[{numbers}]",
    }


LAZY = '''
from torch import nn
from torchyard import ModelParams, hookimpl

class Lazy(ModelParams):
    """Finds its width."""
    def build(self, input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyLinear(num_classes))

@hookimpl
def register_models(register):
    register("lazy", Lazy)
'''


@pytest.mark.parametrize(
    "settings",
    [["train.ema=0.9"], ["model.freeze=[1*]", "model.freeze_epochs=1"]],
    ids=lambda settings: settings[0],
)
def test_lazy_layers_train_like_others(trained, tmp_path, monkeypatch, settings):
    (tmp_path / "lazy.py").write_text(LAZY)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    assert trained("device=cpu", "model=lazy", *settings)["fit"]["steps"] == 3
    host.cache_clear()
