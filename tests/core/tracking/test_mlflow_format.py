"""Keys, texts and model folders in the form MLflow takes."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.tracking.runs import CLASSES, SHAPE, model_of, stored
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.tracking import mlflow_format
from torchyard.core.tracking.mlflow_format import class_metric_keys
from torchyard.core.tracking.record import RunRecord


def test_class_keys_are_readable() -> None:
    names = ["cat", "狗", "T-shirt/top", "T-shirt_top", "CAT", "", "..", '"', "a b", "x" * 300]
    keys = class_metric_keys(names)
    assert keys[:-1] == [
        "test/recall/cat",
        "test/recall/狗",
        "test/recall/T-shirt_top",
        "test/recall/T-shirt_top 2",
        "test/recall/CAT 2",
        "test/recall/class 5",
        "test/recall/class 6",
        "test/recall/class 7",
        "test/recall/a b",
    ]
    assert len(keys[-1]) <= 250


@given(st.lists(st.text() | st.sampled_from(["a", "A", "a 2", "..", "/", "class 1", "ß", "ss"])))
def test_class_keys_are_safe_and_unique(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    keys = class_metric_keys(names)
    assert len({key.casefold() for key in keys}) == len(names)
    for key in keys:
        _validate_metric_name(key)
        assert len(key) <= mlflow_format.MAX_KEY
        assert key.count("/") == 2
        assert mlflow_format.safe_key(key) == key


@given(st.text() | st.text(alphabet="./ a_", max_size=12) | st.text(min_size=240))
@example("..0")
@example("x" * 249 + " .y")
def test_any_key_becomes_one_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    safe = mlflow_format.safe_key(key)
    _validate_metric_name(safe)
    assert 0 < len(safe) <= mlflow_format.MAX_KEY
    assert mlflow_format.safe_key(safe) == safe


@given(st.text(), st.integers(min_value=60, max_value=200))
def test_a_shortened_text_fits(text: str, limit: int) -> None:
    short = mlflow_format.shortened(text, limit)
    assert len(short) <= limit
    assert short == text or short.endswith(f"({len(text)} characters in all)")


def test_the_model_loads_and_predicts_like_the_network(
    record: RunRecord, prepared: PreparedDataset, exported: Path, network, monkeypatch
) -> None:
    import mlflow
    import torch

    record.log_parameters({"optimizer": {"lr": 0.1}})
    record.log_dataset(prepared)
    record.log_model(
        exported,
        prepared,
        torch_version=torch.__version__,
        metrics={"test/accuracy": 0.75},
        step=2,
    )
    uri = f"models:/{model_of(record)}"
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", record._uri)
    generic, native = mlflow.pyfunc.load_model(uri), mlflow.pytorch.load_model(uri)
    mlflow.pyfunc.load_model(f"runs:/{record.run_id}/model")
    for rows in (1, 2, 7):
        pixels = prepared.test.samples[:rows]
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels)).numpy()
            np.testing.assert_allclose(native(torch.from_numpy(pixels)).numpy(), expected, 1e-6)
        np.testing.assert_allclose(generic.predict(np.asarray(pixels)), expected, 1e-6)

    with pytest.raises(mlflow.MlflowException, match="uint8"):  # the signature is enforced
        generic.predict(np.zeros((2, *SHAPE), np.float64))
    assert generic.metadata.metadata == {"classes": list(CLASSES), "image_reading": {}}

    logged = record._client.get_logged_model(uri.removeprefix("models:/"))
    assert logged.status == "READY"
    assert logged.source_run_id == record.run_id
    assert logged.params["optimizer.lr"] == "0.1"
    [metric] = logged.metrics
    assert (metric.key, metric.value, metric.step) == ("test/accuracy", 0.75, 0)
    assert (metric.dataset_name, metric.dataset_digest) == ("toy test", prepared.digest[:16])
    run = stored(record)
    assert run.data.metrics["test/accuracy"] == 0.75
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]


def test_the_model_folder_is_what_mlflow_itself_writes(
    record: RunRecord, prepared: PreparedDataset, exported: Path, network, tmp_path: Path
) -> None:
    import mlflow
    import torch
    import yaml
    from mlflow.models import Model

    record.log_model(exported, prepared, torch_version=torch.__version__)
    client = record._client
    ours = Path(client.get_logged_model(model_of(record)).artifact_location[7:])
    ours = Path(urllib.request.url2pathname(str(ours)))
    theirs = tmp_path / "theirs"
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    mlflow.pytorch.save_model(
        network,
        theirs,
        signature=Model.load(ours).signature,
        input_example=np.zeros((2, *SHAPE), np.uint8),
        pip_requirements=(ours / "requirements.txt").read_text().splitlines(),
        extra_files=[str(tmp_path / "classes.json")],
        serialization_format="pt2",
    )

    def files(folder: Path) -> set[str]:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in found if "input_example" not in name}

    assert files(ours) == files(theirs)
    flavors, expected = Model.load(ours).flavors, Model.load(theirs).flavors
    # One thing differs on purpose: the device, so that it loads where there is a GPU.
    assert flavors["python_function"].pop("config") == {"device": "cpu"}
    expected["python_function"].pop("config")
    expected["python_function"].pop("pickle_module_name")  # of no use to an archive
    assert flavors == expected
    for name in ("conda.yaml", "python_env.yaml"):
        assert (
            yaml.safe_load((ours / name).read_text()).keys()
            == yaml.safe_load((theirs / name).read_text()).keys()
        )
