"""Hugging Face accelerate: one's own loop over what `prepare` gives, no progress by default."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run


def train(job: Job) -> dict[str, float]:
    """Train."""
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(TensorDataset(*job.tensors()), batch_size=job.batch_size, shuffle=True)
    network = job.build()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    started = time.perf_counter()
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for epoch in range(job.epochs):
        network.train()
        total = torch.zeros(())
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total += loss.detach()
        accelerator.print(f"epoch {epoch + 1}: loss {total.item() / len(loader):.4f}")
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run(train)
