"""A worker for the tests of a file, and the configurations it is sent."""

from pathlib import Path

import pytest

from torchyard.core.config.resolve import read_config
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.process import Worker

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


def config(*overrides):
    return read_config("digits", overrides, PRESETS, host()).config.model_dump(mode="json")


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


SEQUENCES = '''
from torchyard import *
from torchyard import hookimpl

class Letters(DatasetParams):
    """Words of twelve letters; the class is whether they begin with a vowel."""
    def build(self, downloads):
        import numpy as np
        ids = np.random.default_rng(0).integers(0, 25, (80, 12)).astype(np.int16)
        ids[-1, -1] = 25  # in the test split alone
        labels = np.isin(ids[:, 0], [0, 4, 8, 14, 20]).astype(int)
        return RawData(["no", "yes"], ArraySplit(ids[:60], labels[:60]),
                       ArraySplit(ids[60:], labels[60:]))
    def describe(self):
        return SampleSpec((12,), 2, "int64")

class Waves(DatasetParams):
    """Two channels of slow and of fast waves; their shape is not known before."""
    def build(self, downloads):
        import numpy as np
        labels = np.arange(80) % 2
        waves = np.sin(np.linspace(0, 6, 32) * (1 + 2 * labels[:, None]))[:, None] * 3 + [[5], [9]]
        waves = waves.astype(np.float32)
        return RawData(["slow", "fast"], ArraySplit(waves[:60], labels[:60]),
                       ArraySplit(waves[60:], labels[60:]))

class Convolved(ModelParams):
    """A one-dimensional convolution."""
    def build(self, input_shape, num_classes):
        from torch import nn
        return nn.Sequential(nn.Conv1d(input_shape[0], 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
                             nn.Flatten(), nn.Linear(32, num_classes))

class Bag(ModelParams):
    """The mean of embeddings."""
    vocabulary: int = 26
    def build(self, input_shape, num_classes):
        from torch import nn
        return nn.Sequential(nn.EmbeddingBag(self.vocabulary, 8), nn.Linear(8, num_classes))

@hookimpl
def register_datasets(register):
    register("letters", Letters)
    register("waves", Waves)

@hookimpl
def register_models(register):
    register("bag", Bag)
    register("convolved", Convolved)
'''
