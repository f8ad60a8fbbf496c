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


CHATTY = """
import logging
import tempfile
from torchyard import ModelParams, hookimpl

class Chatty(ModelParams):
    '''Prints and logs.'''

    def build(self, input_shape, num_classes):
        from torch import nn
        from torch._inductor import codecache
        print("hello from the plugin")
        folders = tempfile.gettempdir(), codecache._HEADER_DIR, codecache.cache_dir()
        print("folders", *folders, sep="|")
        logging.getLogger("torchyard.core.any").info("from torchyard")
        logging.getLogger("other").info("from another")
        logging.getLogger("other").warning("a warning")
        return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))

@hookimpl
def register_models(register):
    register("chatty", Chatty)
"""


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """What a model has printed in `check` and in `train`, by lines; the cache and run folders."""
    folder, lines = tmp_path_factory.mktemp("chatty"), []
    (folder / "chatty.py").write_text(CHATTY)
    settings = config("train.max_steps=1", "train.batch_size=8") | {"model": {"name": "chatty"}}
    cache, run = folder / "cache", folder / "run"
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHYARD_PLUGINS", str(folder))
        patch.setenv("TORCHYARD_CACHE", str(cache))
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        worker = Worker(lines.append)
        worker.call("check", config=settings, cache=str(cache))
        data = worker.call("prepare", config=settings, cache=str(cache))["folder"]
        own = {"temporary": run / ".temporary", "config": settings}
        worker.call("train", data=data, folder=str(run), **own)
        worker.close()
    return lines, cache, run


def test_what_a_plugin_prints_is_passed_on(chatty):
    assert "hello from the plugin" in chatty[0]


def test_what_torchyard_logs_is_passed_on_and_of_others_what_is_a_warning(chatty):
    lines, *_ = chatty
    assert "from torchyard" in lines
    assert "a warning" in lines
    assert "from another" not in lines


def test_temporary_files_and_what_torch_compiles_are_in_folders_of_the_users_own(chatty):
    lines, cache, run = chatty
    compiled = cache / "compiled"
    assert compiled.stat().st_mode & 0o777 == 0o700
    found = [line.split("|")[1:] for line in lines if line.startswith("folders|")]
    temporary = [folders[0] for folders in found]
    assert temporary[0] == str(compiled)
    assert temporary[-1] == str(run / ".temporary") or temporary[-1].startswith("/proc/")
    for _, headers, kept in found:
        assert headers.startswith(f"{compiled}/")
        assert kept == str(compiled)
    assert not (run / ".temporary").exists()
