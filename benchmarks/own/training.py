"""The train stage alone in its process, told to nobody: no Prefect, no MLflow, no parent.

Prints the stage's seconds, and how many of them went into writing checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch._dynamo  # noqa: F401 - an import is not training; a run does it while it waits
import torchvision  # noqa: F401

from benchmarks.own.settings import configuration, nothing
from torchyard.core.training import checkpoint
from torchyard.pipelines.worker.stages import preparation, training


def main(preset: str, cache: str, *overrides: str) -> None:
    """Train."""
    config = configuration(preset, list(overrides))
    data = preparation.prepare(config, cache, emit=nothing)["folder"]
    write, writing = checkpoint.save, []

    def timed(*arguments: Any, **named: Any) -> None:
        started = time.perf_counter()
        write(*arguments, **named)
        writing.append(time.perf_counter() - started)

    checkpoint.save = timed
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fit = training.train(config, data, folder, emit=nothing)["fit"]
        seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "steps_seconds": fit["seconds"],
                "checkpoints": len(writing),
                "checkpoint_seconds": sum(writing),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
