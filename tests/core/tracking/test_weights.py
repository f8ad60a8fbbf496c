"""The weights of recorded models: which models have them, and what is said of the others."""

import json
from pathlib import Path

import pytest

from torchyard.core.config.resolve import resolve
from torchyard.core.config.weights import about_file
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.tracking.store import current_store
from torchyard.core.tracking.weights import recorded_weights


def weights_of(named):
    model = {"name": "linear", "weights": named}
    config = {"dataset": {"name": "digits"}, "model": model, "optimizer": {"name": "adam"}}
    return recorded_weights(resolve(config, host()))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHYARD_CACHE", str(tmp_path / "cache"))


def test_a_run_of_torchyards_has_a_file_of_weights(record, prepared, exported, cache):
    record.log_model(exported, prepared, torch_version="2.11")
    assert record.flush()
    file = weights_of(record.run_id)
    assert Path(file).read_bytes() == exported.read_bytes()
    about = json.loads(about_file(Path(file)).read_text())
    assert about == {"name": record.name, "classes": list(prepared.classes)}


def test_another_librarys_model_is_refused_by_name(workspace, record, cache):
    import mlflow.pyfunc
    from mlflow.pyfunc import PythonModel

    class Constant(PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    with current_store(workspace):
        mlflow.pyfunc.log_model(
            name="m", python_model=Constant(), registered_model_name="other", pip_requirements=[]
        )
    with pytest.raises(UserError) as caught:
        weights_of("models:/other/1")
    assert caught.value.problems == [
        "model.weights: models:/other/1: its model is not one that torchyard logged."
    ]
