"""What the worker sends of errors, and what it passes on of its output."""

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.errors import RunError
from torchyard.pipelines.worker.process import Worker


def test_an_unexpected_error_keeps_its_traceback(worker, cache):
    with pytest.raises(RunError, match="'prepare' failed: TypeError") as caught:
        worker.call("prepare", config=config(), cache=cache, nonsense=1)
    assert "Traceback" in caught.value.details


def test_an_unexpected_error_names_the_plugins_in_use_that_are_not_built_in(worker, cache):
    settings = {**config(), "plugins": {"model strange": "odd==1.0"}}
    with pytest.raises(RunError) as caught:
        worker.call("prepare", config=settings, cache=None)
    assert str(caught.value).startswith(
        "'prepare' failed (with model strange of odd==1.0): TypeError: "
    )


def test_what_a_plugin_prints_is_passed_on(tmp_path, monkeypatch, cache):
    (tmp_path / "chatty.py").write_text(
        "from torchyard import ModelParams, hookimpl\n"
        "class Chatty(ModelParams):\n"
        "    '''Prints.'''\n"
        "    def build(self, input_shape, num_classes):\n"
        "        from torch import nn\n"
        "        print('hello from the plugin', flush=True)\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))\n"
        "@hookimpl\n"
        "def register_models(register):\n"
        "    register('chatty', Chatty)\n"
    )
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    lines = []
    worker = Worker(lines.append)
    worker.call("check", config=config() | {"model": {"name": "chatty"}}, cache=cache)
    worker.close()
    assert "hello from the plugin" in lines


def test_what_torchyard_logs_is_passed_on_and_of_others_what_is_a_warning(
    tmp_path, monkeypatch, cache
):
    (tmp_path / "logging_model.py").write_text(
        "import logging\n"
        "from torchyard import ModelParams, hookimpl\n"
        "class Logging(ModelParams):\n"
        "    '''Logs.'''\n"
        "    def build(self, input_shape, num_classes):\n"
        "        from torch import nn\n"
        "        logging.getLogger('torchyard.core.any').info('from torchyard')\n"
        "        logging.getLogger('other').info('from another')\n"
        "        logging.getLogger('other').warning('a warning')\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))\n"
        "@hookimpl\n"
        "def register_models(register):\n"
        "    register('logging', Logging)\n"
    )
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    lines = []
    worker = Worker(lines.append)
    worker.call("check", config=config() | {"model": {"name": "logging"}}, cache=cache)
    worker.close()
    assert "from torchyard" in lines
    assert "a warning" in lines
    assert "from another" not in lines
