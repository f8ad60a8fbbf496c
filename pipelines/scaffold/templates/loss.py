"""The loss `new_thing`: cross-entropy against softened targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Loss, LossParams, Register, hookimpl

if TYPE_CHECKING:
    import torch


class NewThing(LossParams):
    """Cross-entropy against targets of which `smoothing` is spread over all classes."""

    smoothing: float = Field(0.1, ge=0, lt=1, description="share that is spread over all classes")

    def build(self, num_classes: int) -> Loss:
        """Make a callable (logits N x num_classes, int64 targets N) -> scalar."""
        smoothing = self.smoothing

        def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            log_p = logits.log_softmax(dim=1)
            at_target = log_p.gather(1, targets[:, None]).squeeze(1)
            return -((1 - smoothing) * at_target + smoothing * log_p.mean(dim=1)).mean()

        return loss


@hookimpl
def register_losses(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
