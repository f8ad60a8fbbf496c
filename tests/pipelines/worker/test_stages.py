"""The stages, from data to an exported model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.worker.conftest import SEQUENCES, config
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.data.splitting import stratified_split
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.events import EpochDone
from torchyard.core.training.execution import settings as execution_settings
from torchyard.pipelines.worker import stages


def test_stages_from_data_to_exported_model(worker, cache, tmp_path):
    events = []

    settings = config("train.epochs=2", "train.validation=0.2", "train.threads=1",
                      "metrics=[{name: top_k, k: 3}]")  # fmt: skip
    summary = worker.call("check", config=settings, cache=cache)
    assert (summary["parameters"], summary["shape"]) == (61_706, [1, 32, 32])
    first = worker.call("prepare", events.append, config=settings, cache=cache)
    second = worker.call("prepare", events.append, config=settings, cache=cache)
    assert not first["found"]
    assert second == {"folder": first["folder"], "found": True}
    trained = worker.call(
        "train", events.append, config=settings, data=first["folder"], folder=str(tmp_path)
    )
    done = [event for event in events if isinstance(event, EpochDone)]
    assert [event.epoch for event in done] == [1, 2]
    assert done[1].validation_accuracy > 0.3
    assert trained["placement"]["model_device"] == trained["placement"]["data_device"] == "cpu"
    assert trained["placement"]["threads"] == "1"
    assert trained["peaks"]["peak_memory_mib"] > 100
    again = tmp_path / "again"
    again.mkdir()
    repeated = worker.call("train", config=settings, data=first["folder"], folder=str(again))
    assert repeated["weights_digest"] == trained["weights_digest"]
    target = tmp_path / "predictions.npz"
    evaluated = worker.call("evaluate", config=settings, data=first["folder"],
                            weights=trained["weights"], target=str(target))  # fmt: skip
    assert target.stat().st_size > 0
    figures = evaluated["figures"]
    assert figures["top_k/3"] >= figures["accuracy"] > 0.3
    assert done[1].validation_figures["top_k/3"] >= done[1].validation_accuracy
    exported = tmp_path / "model.pt2"
    worker.call("export", config=settings, data=first["folder"], weights=trained["weights"],
                target=str(exported))  # fmt: skip
    assert exported.stat().st_size > 0


def test_views_are_a_layer_of_what_is_evaluated_and_exported(worker, cache, tmp_path):
    plain = config("train.epochs=1", "train.max_steps=9", "device=cpu")
    data = worker.call("prepare", config=plain, cache=cache)["folder"]
    weights = worker.call("train", config=plain, data=data, folder=str(tmp_path))["weights"]
    made = {}
    for views in ("one", "mirror", "mirror_and_shifts"):
        arguments = {"data": data, "weights": weights} | {
            "config": config("train.epochs=1", f"evaluate.views={views}", "device=cpu")
        }
        worker.call("evaluate", target=str(tmp_path / f"{views}.npz"), **arguments)
        worker.call("export", target=str(tmp_path / f"{views}.pt2"), **arguments)
        made[views] = Predictions.load(tmp_path / f"{views}.npz").logits
        network = torch.export.load(tmp_path / f"{views}.pt2").module()
        samples = torch.from_numpy(PreparedDataset.open(Path(data)).test.samples[:50].copy())
        np.testing.assert_allclose(network(samples).detach(), made[views][:50], atol=1e-4)
        if views == "one":
            mirrored = network(samples.flip(-1)).detach().numpy()
    np.testing.assert_allclose(made["mirror"][:50], (made["one"][:50] + mirrored) / 2, atol=1e-4)


def test_only_what_is_in_the_table_is_a_stage(worker):
    for name in ("_train", "load_export", "torch"):
        with pytest.raises(RunError, match=f"'{name}' failed: KeyError"):
            worker.call(name)


@pytest.fixture
def trained(tmp_path, cache):
    """Train on digits in this process; returns what the stage returns."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def train(*overrides):
        settings = config("train.epochs=1", "train.max_steps=3", "train.threads=1", *overrides)
        data = stages.prepare(settings, cache, print)["folder"]
        return stages.train(settings, data, str(tmp_path), lambda event: None)

    yield train
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn


def test_a_torch_that_no_test_has_seen_trains_without_its_private_parts(trained, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a private part of torch is used")

    monkeypatch.setattr(execution_settings, "WORTH_COMPILING", 1)
    monkeypatch.setattr(execution_settings, "WORTH_ONEDNN", 1e12)
    monkeypatch.setattr(execution_settings, "trim_kernels", refuse)
    monkeypatch.setattr(stages, "CompiledStep", refuse)
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


def test_patience_is_refused_where_the_data_have_no_validation_split(tmp_path):
    settings = config("train.patience=2")
    for _ in range(2):  # with the data not yet prepared, and then
        with pytest.raises(UserError, match="has none of its own: set train"):
            stages.prepare(settings, str(tmp_path), print)
    with pytest.raises(UserError, match="has none of its own: set train"):
        stages.check(settings, str(tmp_path), print)
    stages.prepare(config("train.patience=2", "train.validation=0.2"), str(tmp_path), print)


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
        data = stages.prepare(settings, str(tmp_path), events.append)["folder"]
        trained = stages.train(settings, data, str(tmp_path), events.append)
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

    data = stages.prepare(settings, str(tmp_path), emit)["folder"]
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(not deterministic)  # as another run left it
    try:
        stages.train(settings, data, str(tmp_path), emit)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = True
    assert modes == [deterministic]


@pytest.mark.parametrize(("dataset", "model"), [("letters", "bag"), ("waves", "convolved")])
def test_token_ids_and_signals_go_all_the_way(tmp_path, monkeypatch, dataset, model):
    (tmp_path / "mine.py").write_text(SEQUENCES)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    settings = config(
        *(f"dataset={dataset}", f"model={model}", "optimizer=adam", "optimizer.lr=0.02"),
        *("train.epochs=20", "train.threads=1", "device=cpu"),
    )
    folder, target, threads = str(tmp_path), tmp_path / "model.pt2", torch.get_num_threads()
    data = stages.prepare(settings, folder, print)["folder"]
    trained = stages.train(settings, data, folder, lambda event: None)
    assert trained["placement"]["normalization_device"] == "cpu"
    arguments = {"config": settings, "data": data, "weights": trained["weights"], "emit": print}
    stages.evaluate(**arguments, target=str(tmp_path / "predictions.npz"))
    assert stages.export(**arguments, target=str(target))["refused"] is None
    predicted = Predictions.load(tmp_path / "predictions.npz")
    assert (predicted.predicted == predicted.targets).mean() > 0.6
    exported, samples = torch.export.load(target).module(), PreparedDataset.open(Path(data)).test
    for count in (1, 7):
        logits = exported(torch.from_numpy(samples.samples[:count]))
        torch.testing.assert_close(logits, torch.from_numpy(predicted.logits[:count]))
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = True
    host.cache_clear()


def test_samples_that_are_held_out_are_not_trained_on(tmp_path):
    settings = {
        "dataset": {"name": "random_vectors"},
        "model": {"name": "linear"},
        "train": {"epochs": 2, "validation": 0.3, "seed": 4},
        "device": "cpu",
    }
    folder = Path(stages.prepare(settings, str(tmp_path), print)["folder"])
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
        stages.train(settings, str(folder), str(tmp_path), emit)
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
    used, fit = {}, stages.loop.fit

    def watched(state, loss, data, *rest):
        used.update(train=data.train, validation=data.validation)
        return fit(state, loss, data, *rest)

    monkeypatch.setattr(stages.loop, "fit", watched)
    folder = stages.prepare(settings, str(tmp_path), print)["folder"]
    if people == 1:
        with pytest.raises(UserError, match="one group cannot be divided"):
            stages.train(settings, folder, str(tmp_path), print)
        return
    threads = torch.get_num_threads()
    stages.train(settings, folder, str(tmp_path), lambda event: None)
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
    folder = stages.prepare(settings, str(tmp_path), print)["folder"]
    done = stages.train(settings, folder, str(tmp_path), lambda event: None)
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
