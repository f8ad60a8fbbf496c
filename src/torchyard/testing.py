"""The test kit for plugin authors: one assertion for each kind.

from torchyard.testing import assert_model_plugin

def test_small():
    assert_model_plugin(Small(width=8))
"""

from torchyard.core.testing.assertions import (
    assert_augmentation_plugin,
    assert_dataset_plugin,
    assert_gate_plugin,
    assert_loss_plugin,
    assert_metric_plugin,
    assert_optimizer_plugin,
    assert_scheduler_plugin,
)
from torchyard.core.testing.faults import PluginFault, plugin_in_file
from torchyard.core.testing.models import assert_model_plugin

__all__ = [
    "PluginFault",
    "assert_augmentation_plugin",
    "assert_dataset_plugin",
    "assert_gate_plugin",
    "assert_loss_plugin",
    "assert_metric_plugin",
    "assert_model_plugin",
    "assert_optimizer_plugin",
    "assert_scheduler_plugin",
    "plugin_in_file",
]
