"""The stages, from data to an exported model."""

import pytest
import torch

from tests.pipelines.worker.conftest import config
from torchyard.core.errors import RunError, UserError
from torchyard.core.training.events import EpochDone
from torchyard.core.training.execution import settings as execution_settings
from torchyard.pipelines.worker import stages


def test_stages_from_data_to_exported_model(worker, cache, tmp_path):
    events = []

    settings = config("train.epochs=2", "train.validation=0.2", "train.threads=1")
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
    worker.call("evaluate", config=settings, data=first["folder"], weights=trained["weights"],
                target=str(target))  # fmt: skip
    assert target.stat().st_size > 0
    exported = tmp_path / "model.pt2"
    worker.call("export", config=settings, data=first["folder"], weights=trained["weights"],
                target=str(exported))  # fmt: skip
    assert exported.stat().st_size > 0


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
