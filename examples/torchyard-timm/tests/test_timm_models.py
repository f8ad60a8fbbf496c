"""The models of timm: all are there, they are right, and they train."""

from pathlib import Path

import pytest

from torchyard import ModelParams, UserError
from torchyard.testing import assert_model_plugin, plugin_in_file

pytest.importorskip(
    "timm", reason="timm, an optional dependency of examples/torchyard-timm, is not installed"
)
FILE = Path(__file__).parents[1] / "torchyard_timm" / "models.py"


def model(name):
    return plugin_in_file(FILE, ModelParams, f"timm/{name}")


def test_every_model_of_timm_is_there():
    import timm

    from torchyard.core.hosting.host import Host
    from torchyard.core.hosting.neighbours import import_file
    from torchyard.core.hosting.sources import file_source

    host = Host()
    host.load(file_source(FILE), lambda: import_file(FILE))
    assert [name for name, _ in host.registrations("model")] == [
        f"timm/{name}" for name in sorted(timm.list_models())
    ]
    with pytest.raises(LookupError, match=r"Did you mean 'timm/resnet18'\?"):
        host.find("model", "timm/resnet81")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
def test_it_does_what_a_model_must(name):
    assert_model_plugin(model(name)(), input_shape=(1, 32, 32))


def test_weights_that_cannot_be_had_are_one_message(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        model("resnet10t")(pretrained=True).build((3, 32, 32), 10)
    [problem] = caught.value.problems
    assert problem.startswith("model.pretrained: timm's weights of 'resnet10t' cannot be had: ")
    assert "model.pretrained=false" in problem


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="takes images, not vectors"):
        model("resnet18")().build((20,), 10)
