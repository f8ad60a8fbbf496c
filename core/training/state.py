"""Everything that training changes, which is what a checkpoint holds."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchyard.core.training import checkpoint
from torchyard.core.training.network.freezing import Freezing
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.weights.average import WeightAverage

STATE_KEYS = ("network", "optimizer", "scheduler", "scaler")


@dataclass
class Position:
    """How far training has come.

    Attributes:
        epoch: epochs finished.
        batch: batches finished in the epoch under way.
        step: batches finished in all.
        loss_sum, correct, seen: sums over the samples of the epoch under way.
        seconds: training time of the epoch under way.
        total_seconds, total_seen: of the epochs finished.
        parts: into which each batch is split, to be computed one after the other.
        best_value: the best value so far of the monitored figure, after `best_epoch` epochs.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    total_seconds: float = 0.0
    total_seen: int = 0
    parts: int = 1
    best_value: float | None = None
    best_epoch: int = 0


@dataclass
class TrainingState:
    """A network in training; beside it only the random generators of the process have a state.

    Attributes:
        network: on `device`, raw samples to logits.
        optimizer: of the network's trained parameters.
        scheduler: of the optimizer, stepped after every batch.
        follows_metric: whether the scheduler is stepped after every epoch instead, with the loss
            of the validation.
        needs_closure: whether the optimizer's step computes the gradients, once or more often.
        freezing: what of the network is frozen, and how long.
        device: where the network is.
        precision: of the forward pass, "float32", "bfloat16" or "float16"; weights stay float32.
        position: how far it has come.
        best: the network's state, on the CPU, after `position.best_epoch`, where it is validated.
        ema: decay of the weights' average, which is validated and kept in their place; None: none.
        scaler: of the loss, for float16.
        average: of the weights.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    precision: str = "float32"
    position: Position = field(default_factory=Position)
    best: dict[str, Any] | None = None
    follows_metric: bool = False
    needs_closure: bool = False
    freezing: Freezing | None = None
    ema: float | None = None
    scaler: torch.amp.GradScaler = field(init=False)
    average: WeightAverage | None = field(init=False)

    def __post_init__(self) -> None:
        self.average = WeightAverage(self.network, self.ema) if self.ema is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")

    def averaged(self) -> AbstractContextManager[None]:
        """Have the network hold the weights that are its result: their average, if there is one."""
        return self.average.in_network() if self.average else nullcontext()

    def keep_best(self) -> None:
        """Keep the weights that the network has now as the best."""
        self.best = {
            name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
            for name, value in self.network.state_dict().items()
        }

    def save(self, path: Path, strategy: Strategy) -> None:
        """Write a checkpoint from the main process; every process of the strategy takes part.

        Raises:
            RunError: the disk does not take it.
        """
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in STATE_KEYS}
        # Every process draws from its own generators.
        state["random"] = strategy.all_gather(checkpoint.random_state(self.device))
        state |= {"position": asdict(self.position), "best": self.best}
        if self.average:
            state["average"] = self.average.state_dict()
        if strategy.is_main:
            checkpoint.save_beside(state, path, self.position.step)

    def load(self, path: Path | None, strategy: Strategy) -> None:
        """Resume from a checkpoint, the random generators of this process included.

        Args:
            path: read by the main process, which sends it to the others.

        Raises:
            RunError: it cannot be read.
        """
        state = strategy.broadcast(checkpoint.load(path) if path else {})
        for name in STATE_KEYS:
            getattr(self, name).load_state_dict(state[name])
        if strategy.rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][strategy.rank], self.device)
        if self.average and "average" in state:
            self.average.load_state_dict(state["average"])
        elif self.ema is not None:  # the run was trained on with another setting
            self.average = WeightAverage(self.network, self.ema)
        position = state["position"]
        if "best_loss" in position:  # before there was `train.monitor`, it was the loss
            loss = position.pop("best_loss")
            position["best_value"] = loss if math.isfinite(loss) else None
        self.position, self.best = Position(**position), state["best"]

    @property
    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or infinite; the CPU waits for the device."""
        return all(weight.isfinite().all() for weight in self.network.parameters())
