"""timm as its training script uses it: its model, optimizer, meters, a loss now and then."""

from __future__ import annotations

import time

from timm import create_model
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter
from torch.nn import CrossEntropyLoss
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run

LOG_EVERY = 50


def train(job: Job) -> dict[str, float]:
    """Train."""
    loader = DataLoader(TensorDataset(*job.tensors()), batch_size=job.batch_size, shuffle=True)
    network = create_model(job.network, num_classes=10)
    optimizer = create_optimizer_v2(network, opt="momentum", lr=LEARNING_RATE, momentum=MOMENTUM)
    criterion = CrossEntropyLoss()
    started = time.perf_counter()
    for epoch in range(job.epochs):
        network.train()
        losses = AverageMeter()
        for step, (images, labels) in enumerate(loader):
            loss = criterion(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % LOG_EVERY == 0:
                losses.update(loss.item(), len(images))
                print(f"Train: {epoch} [{step}/{len(loader)}] Loss: {losses.val:.3g}")
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run(train)
