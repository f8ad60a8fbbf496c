"""PyTorch Lightning at its defaults: progress bar, a logged loss, a checkpoint an epoch.

With `--tracked` the loss goes to its MLflow logger, into a SQLite store, and nothing else is kept;
with `--bare` there is neither logger nor progress bar nor checkpoint.
"""

from __future__ import annotations

import time

import pytorch_lightning as lightning
import torch
from pytorch_lightning.loggers import MLFlowLogger
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.job import LEARNING_RATE, MOMENTUM, Job, run


class Classifier(lightning.LightningModule):
    """The network with its training step."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch, _):
        """The loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        """The tutorial's."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def train(job: Job) -> dict[str, float]:
    """Train."""
    loader = DataLoader(TensorDataset(*job.tensors()), batch_size=job.batch_size, shuffle=True)
    settings = {}
    if job.bare:
        settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    if job.tracked:
        logger = MLFlowLogger("benchmark", tracking_uri="sqlite:///lightning.db")
        settings = {"logger": logger, "enable_checkpointing": False}
        logger.run_id  # noqa: B018 - makes the database, which is not training
    trainer = lightning.Trainer(max_epochs=job.epochs, accelerator="cpu", **settings)
    module = Classifier(job.build())
    started = time.perf_counter()
    trainer.fit(module, loader)
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run(train)
