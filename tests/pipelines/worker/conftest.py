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
