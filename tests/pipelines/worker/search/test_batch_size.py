"""`train.batch_size=auto`: what fits is found, trains as if it had been asked for, and stays."""

import json

import pytest
import torch
from torch import nn

from tests.pipelines.worker.conftest import config
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.search import batch_size
from torchyard.pipelines.worker.stages import preparation, training

GREEDY = '''
from torchyard import ModelParams, hookimpl

class Greedy(ModelParams):
    """Has memory for so many samples."""
    most: int = 20
    def build(self, input_shape, num_classes):
        import torch
        class Short(torch.nn.Module):
            def __init__(self, most):
                super().__init__()
                self.most = most
            def forward(self, samples):
                if self.training and len(samples) > self.most:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return samples
        inputs = torch.Size(input_shape).numel()
        return torch.nn.Sequential(Short(self.most), torch.nn.Flatten(),
                                   torch.nn.Linear(inputs, num_classes))

@hookimpl
def register_models(register):
    register("greedy", Greedy)
'''


@pytest.fixture
def train(tmp_path, cache, monkeypatch):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "greedy.py").write_text(GREEDY)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path / "plugins"))
    host.cache_clear()
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def train(folder, *overrides):
        settings = config("model=greedy", "train.epochs=1", "device=cpu", *overrides)
        data = preparation.prepare(settings, cache, print)["folder"]
        (tmp_path / folder).mkdir(exist_ok=True)
        return training.train(settings, data, str(tmp_path / folder), lambda event: None)

    yield train
    host.cache_clear()
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn


def test_the_largest_that_fits_trains_as_if_it_had_been_asked_for(train, tmp_path):
    found = train("auto", "train.batch_size=auto")
    fixed = train("fixed", "train.batch_size=16")
    assert found["placement"]["batch_size"] == fixed["placement"]["batch_size"] == "16"
    assert found["weights_digest"] == fixed["weights_digest"]
    assert json.loads((tmp_path / "auto" / batch_size.FILE).read_text()) == {"batch_size": 16}


def test_an_epoch_has_some_steps_however_much_fits(train):
    done = train("auto", "train.batch_size=auto", "model.most=100000")
    assert done["placement"]["batch_size"] == "64"  # of 1,438 samples
    assert done["fit"]["steps"] == 23


def test_a_run_that_resumes_has_the_batch_size_it_began_with(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / batch_size.FILE).write_text('{"batch_size": 8}')
    assert train("run", "train.batch_size=auto")["placement"]["batch_size"] == "8"


def test_on_a_cpu_the_free_memory_bounds_it(train, monkeypatch):
    kept = 2 * 4 * 1024  # of 32 x 32 float32 pixels, and as much again for gradients
    memory = type("Memory", (), {"available": 2 * 5 * kept, "total": 0})
    monkeypatch.setattr(batch_size.psutil, "virtual_memory", lambda: memory)
    done = train("run", "train.batch_size=auto", "model.most=1000")
    assert done["placement"]["batch_size"] == "4"


@pytest.mark.parametrize("other", ["train.accumulate=2", "train.parallel=ddp"])
def test_it_is_for_whole_batches_of_one_process(other):
    with pytest.raises(UserError, match="batch_size=auto is for one process"):
        config("train.batch_size=auto", other)


def test_what_is_kept_of_a_sample_is_counted_once():
    network = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100))
    counted = batch_size._sample_bytes(network, torch.randn(4, 100))
    assert counted == 2 * 4 * (100 + 100)  # the input, and ReLU's output that two layers keep
