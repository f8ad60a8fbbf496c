"""One training step: forward, loss, backward, update."""

from __future__ import annotations

import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.hosting.params import Loss
from torchyard.core.training.batches import Batch
from torchyard.core.training.execution import CompiledStep
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState


class Step:
    """What is done with each batch.

    Args:
        state: what is trained.
        loss_function: (logits, targets) to a scalar.
        settings: of the training loop.
        strategy: the processes that train together.
        compiled: does the step of the batches it takes; in float32, in a single process.
    """

    def __init__(
        self,
        state: TrainingState,
        loss_function: Loss,
        settings: TrainConfig,
        strategy: Strategy,
        compiled: CompiledStep | None,
    ) -> None:
        self._state, self._loss_function, self._compiled = state, loss_function, compiled
        self._clip_norm = settings.clip_norm
        self._forward = strategy.wrap(state.network)
        self._autocast = torch.autocast(
            state.device.type,
            dtype=getattr(torch, state.precision),
            enabled=state.precision != "float32",
        )

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Train one batch; returns its loss and how many samples were right, on the device."""
        state, compiled, updated = self._state, self._compiled, False
        if compiled is not None and compiled.accepts(batch.inputs):
            loss, right = compiled(batch.inputs, batch.targets, batch.labels)
            updated = compiled.updates
        else:
            with self._autocast:
                logits = self._forward(batch.inputs)
                loss = self._loss_function(logits, batch.targets)
            if batch.weight != 1:
                loss = loss * batch.weight
            state.optimizer.zero_grad(set_to_none=True)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            right = (logits.detach().argmax(1) == batch.labels).sum()
        if not updated:
            if self._clip_norm is not None:
                state.scaler.unscale_(state.optimizer)
                nn.utils.clip_grad_norm_(state.network.parameters(), self._clip_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
        state.scheduler.step()
        return loss.detach(), right
