"""What the checks of all kinds share."""

import pytest

from tests.core.testing.plugin_classes import plugin
from torchyard import LossParams, ModelParams
from torchyard.core.hosting.host import host
from torchyard.testing import PluginFault, assert_loss_plugin, assert_model_plugin, plugin_in_file


def test_a_class_or_another_kind_is_no_plugin_to_test():
    params = host().find("loss", "mse").params
    with pytest.raises(PluginFault, match="the class MeanSquaredError is no instance of a LossP"):
        assert_loss_plugin(params)
    with pytest.raises(PluginFault, match="is no instance of a ModelParams"):
        assert_model_plugin(params())


def test_what_is_not_explained_is_found():
    def build(self, *arguments):
        raise AssertionError("not built")

    with pytest.raises(PluginFault, match="docstring: the class has none"):
        assert_loss_plugin(plugin("loss", build, __doc__=None))
    thing = type(
        "Thing",
        (LossParams,),
        {"__annotations__": {"width": int}, "__doc__": "A.", "build": build},
    )
    with pytest.raises(PluginFault, match="'width' has neither default nor description"):
        assert_loss_plugin(thing(width=3))


def test_a_plugin_file_is_loaded_or_its_fault_told(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import no_such_module")
    with pytest.raises(PluginFault, match="failed to load: ModuleNotFoundError"):
        plugin_in_file(file, ModelParams, "mine")
    file.write_text("")
    with pytest.raises(PluginFault, match="no model named 'mine'"):
        plugin_in_file(file, ModelParams, "mine")
