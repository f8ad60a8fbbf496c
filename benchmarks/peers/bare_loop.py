"""Plain torch with nothing around it: tensors in memory, batches by indexing."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run


def train(job: Job) -> dict[str, float]:
    """Train."""
    images, labels = job.tensors()
    network = job.build()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    started = time.perf_counter()
    for epoch in range(job.epochs):
        order, total = torch.randperm(len(images)), 0.0
        for batch in order.split(job.batch_size):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}")
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run(train)
