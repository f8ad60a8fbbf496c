"""One training step: forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.errors import RunError
from torchyard.core.hosting.params import Loss
from torchyard.core.training.batches import Batch, part_count
from torchyard.core.training.execution import WholeStep
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState


class Step:
    """What is done with each batch.

    Args:
        state: what is trained.
        loss_function: (logits, targets) to a scalar.
        settings: of the training loop.
        strategy: the processes that train together.
        whole: does the step of the batches it takes at once; in a single process.
    """

    def __init__(
        self,
        state: TrainingState,
        loss_function: Loss,
        settings: TrainConfig,
        strategy: Strategy,
        whole: WholeStep | None,
    ) -> None:
        self._state, self._loss_function, self._whole = state, loss_function, whole
        self._clip_norm, self._strategy = settings.clip_norm, strategy
        # Of a batch, in this process.
        self._share = -(-settings.known_batch_size // strategy.world_size)
        self._forward = strategy.wrap(state.network)
        self._autocast = torch.autocast(
            state.device.type,
            dtype=getattr(torch, state.precision),
            enabled=state.precision != "float32",
        )

    def begin_epoch(self, epoch: int) -> None:
        """Freeze what is frozen in an epoch, counted from 0, and train what is not."""
        freezing = self._state.freezing
        if freezing is not None and freezing.begin_epoch(epoch):
            # DistributedDataParallel knows the parameters that were trained when it was made.
            self._forward = self._state.network
            self._forward = self._strategy.wrap(self._state.network)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Train one batch; returns its loss and how many samples were right, on the device."""
        state, whole, updated = self._state, self._whole, False
        tensors = batch.inputs, batch.targets, batch.labels
        if state.needs_closure:
            loss, right = self._step_with_closure(batch)
            updated = True
        elif whole is not None and state.position.parts == 1 and whole.accepts(*tensors):
            loss, right = whole(*tensors)
            updated = whole.updates
        else:
            loss, right = self._backward(batch)
        if not updated:
            if self._clip_norm is not None:
                state.scaler.unscale_(state.optimizer)
                nn.utils.clip_grad_norm_(state.network.parameters(), self._clip_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
        if state.average:
            state.average.update()
        if not state.follows_metric:
            state.scheduler.step()
        return loss, right

    def _backward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the gradients of a batch, in twice as many parts each time that memory is short.

        Raises:
            RunError: there is no memory for a single sample.
        """
        position = self._state.position
        while True:
            parts = part_count(len(batch.inputs), -(-self._share // position.parts))
            try:
                return self._in_parts(batch, parts)
            except torch.OutOfMemoryError as error:
                memory = (
                    f"{self._state.device} has too little memory for {len(batch.inputs)} samples"
                )
                if self._strategy.world_size > 1:  # each process would have to know of it
                    raise RunError(f"{memory}: set train.accumulate, e.g. 4") from error
                if parts > len(batch.inputs) // 2:
                    raise RunError(f"{memory}, even one after the other") from error
            # Here, because the error holds what the part had in memory.
            position.parts *= 2
            if self._state.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_parts(self, batch: Batch, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._state.optimizer.zero_grad(set_to_none=True)
        if parts == 1:
            return self._add_gradients(batch.inputs, batch.targets, batch.labels, batch.weight)
        losses, rights = [], []
        split = (each.tensor_split(parts) for each in (batch.inputs, batch.targets, batch.labels))
        for number, (inputs, targets, labels) in enumerate(zip(*split, strict=True), 1):
            weight = batch.weight * len(inputs) / len(batch.inputs)
            with self._strategy.exchange(self._forward, wanted=number == parts):
                loss, right = self._add_gradients(inputs, targets, labels, weight)
            losses.append(loss)
            rights.append(right)
        return torch.stack(losses).sum(), torch.stack(rights).sum()

    def _add_gradients(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        weight: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of weight x mean loss; returns that, and how many were right."""
        with self._autocast:
            logits = self._forward(inputs)
            loss = self._loss_function(logits, targets)
        if weight != 1:
            loss = loss * weight
        self._state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _step_with_closure(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the optimizer compute the gradients; the loss and how many were right at first.

        https://docs.pytorch.org/docs/stable/optim.html#optimizer-step-closure
        Running statistics take the batch in once, at the weights that it found: those that an
        optimizer tries on the way, such as SAM's, are none of the network's.
        """
        results: list[tuple[torch.Tensor, torch.Tensor]] = []

        def closure() -> torch.Tensor:
            kept = statistics_kept(self._state.network) if results else nullcontext()
            with torch.enable_grad(), kept:
                results.append(self._backward(batch))
            if self._clip_norm is not None:
                nn.utils.clip_grad_norm_(self._state.network.parameters(), self._clip_norm)
            # Of the whole batch: every process must decide alike.
            return self._strategy.all_reduce_mean(results[-1][0])

        self._state.optimizer.step(closure)  # type: ignore[arg-type]
        if not results:
            raise RunError("The optimizer's step did not call its closure: nothing was trained.")
        return results[0]


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Have batch norms use a batch's statistics, and leave their running ones as they are."""
    tracking: list[Any] = [
        each
        for each in network.modules()
        if each.training and getattr(each, "track_running_stats", False)
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
