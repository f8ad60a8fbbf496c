"""The stages, from data to an exported model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipelines.worker.conftest import SEQUENCES, config
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.events import EpochDone
from torchyard.pipelines.worker import stages
from torchyard.pipelines.worker.stages import evaluation, preparation, training


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
    for name in ("train_process", "load_export", "torch"):
        with pytest.raises(RunError, match=f"'{name}' failed: KeyError"):
            worker.call(name)


def test_patience_is_refused_where_the_data_have_no_validation_split(tmp_path):
    settings = config("train.patience=2")
    for _ in range(2):  # with the data not yet prepared, and then
        with pytest.raises(UserError, match="has none of its own: set train"):
            preparation.prepare(settings, str(tmp_path), print)
    with pytest.raises(UserError, match="has none of its own: set train"):
        stages.check(settings, str(tmp_path), print)
    preparation.prepare(config("train.patience=2", "train.validation=0.2"), str(tmp_path), print)


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
    data = preparation.prepare(settings, folder, print)["folder"]
    trained = training.train(settings, data, folder, lambda event: None)
    assert trained["placement"]["normalization_device"] == "cpu"
    arguments = {"config": settings, "data": data, "weights": trained["weights"], "emit": print}
    evaluation.evaluate(**arguments, target=str(tmp_path / "predictions.npz"))
    assert evaluation.export(**arguments, target=str(target))["refused"] is None
    predicted = Predictions.load(tmp_path / "predictions.npz")
    assert (predicted.predicted == predicted.targets).mean() > 0.6
    exported, samples = torch.export.load(target).module(), PreparedDataset.open(Path(data)).test
    for count in (1, 7):
        logits = exported(torch.from_numpy(samples.samples[:count]))
        torch.testing.assert_close(logits, torch.from_numpy(predicted.logits[:count]))
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = True
    host.cache_clear()
