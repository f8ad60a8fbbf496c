"""What the network of a run of ours gives for a few images, before it has learned anything."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.own.settings import configuration, nothing
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.checks.config_check import starting_weights
from torchyard.pipelines.worker.search.trial_training import begun_network
from torchyard.pipelines.worker.stages import preparation


def main(images: str, preset: str, *overrides: str) -> None:
    """Print the logits of the images of a .npy file, uint8 N x C x H x W."""
    config = configuration(preset, list(overrides))
    resolved = resolve_once(config, host())
    with tempfile.TemporaryDirectory() as cache:
        folder = preparation.prepare(config, cache, emit=nothing)["folder"]
        prepared = PreparedDataset.open(Path(folder))
        start = starting_weights(resolved, None)
        network, _, taken = begun_network(resolved, prepared, torch.device("cpu"), start)
        with torch.inference_mode():
            logits = network.eval()(torch.from_numpy(np.load(images)))
    print(json.dumps({"logits": logits.tolist(), "taken": taken}))


if __name__ == "__main__":
    main(*sys.argv[1:])
