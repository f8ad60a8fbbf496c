"""The 60-minute blitz as its readers run it: PIL images, transforms a sample, two workers.

With `--test` it also evaluates the test split, batch by batch as it trained.
"""

from __future__ import annotations

import time

import torch
import torchvision.transforms as transforms
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run

WORKERS = 2
PRINT_EVERY = 2000


class Pictures(Dataset):
    """Samples as torchvision's CIFAR10 gives them: arrays in memory, a PIL image each time."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def train(job: Job) -> dict[str, float]:
    """Train as the tutorial does, then perhaps test as it does."""
    loader = DataLoader(
        Pictures(*job.pixels()), batch_size=job.batch_size, shuffle=True, num_workers=WORKERS
    )
    network = job.build()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    started = time.perf_counter()
    for epoch in range(job.epochs):
        running_loss = 0.0
        for step, (inputs, labels) in enumerate(loader, 1):
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if step % PRINT_EVERY == 0:
                print(f"[{epoch + 1}, {step:5d}] loss: {running_loss / PRINT_EVERY:.3f}")
                running_loss = 0.0
    seconds = time.perf_counter() - started
    if not job.test:
        return {"seconds": seconds}

    loader = DataLoader(
        Pictures(*job.pixels("test")), batch_size=job.batch_size, num_workers=WORKERS
    )
    correct = total = 0
    started = time.perf_counter()
    with torch.no_grad():
        for inputs, labels in loader:
            predicted = network(inputs).argmax(1)
            total += len(labels)
            correct += (predicted == labels).sum().item()
    return {
        "seconds": seconds,
        "test_seconds": time.perf_counter() - started,
        "accuracy": correct / total,
        "tested": total,
    }


if __name__ == "__main__":
    run(train)
