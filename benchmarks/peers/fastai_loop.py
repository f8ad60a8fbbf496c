"""fastai's Learner with a metric and its progress bar; one batch to validate, as it must."""

from __future__ import annotations

import time
from functools import partial

from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from torch.utils.data import TensorDataset

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run


def train(job: Job) -> dict[str, float]:
    """Train."""
    images, labels = job.tensors()
    few = slice(0, job.batch_size)
    loaders = DataLoaders(
        DataLoader(TensorDataset(images, labels), bs=job.batch_size, shuffle=True, num_workers=0),
        DataLoader(TensorDataset(images[few], labels[few]), bs=job.batch_size, num_workers=0),
        device="cpu",
    )
    learner = Learner(
        loaders,
        job.build(),
        loss_func=CrossEntropyLossFlat(),
        opt_func=partial(SGD, mom=MOMENTUM),
        metrics=accuracy,
    )
    started = time.perf_counter()
    learner.fit(job.epochs, LEARNING_RATE)
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run(train)
