"""The stages called in this process, without a parent."""

import pytest
import torch

from torchyard.core.training.events import EpochDone
from torchyard.pipelines.worker import stages


@pytest.mark.parametrize("deterministic", [True, False])
def test_training_is_deterministic_where_that_is_asked_for(tmp_path, deterministic):
    config = {
        "dataset": {"name": "random_vectors"},
        "model": {"name": "linear"},
        "train": {"epochs": 1, "deterministic": deterministic},
        "device": "cpu",
    }
    modes = []

    def emit(event):
        if isinstance(event, EpochDone):
            modes.append(torch.are_deterministic_algorithms_enabled())

    data = stages.prepare(config, str(tmp_path), emit)["folder"]
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(not deterministic)  # as another run left it
    try:
        stages.train(config, data, str(tmp_path), emit)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = True
    assert modes == [deterministic]
