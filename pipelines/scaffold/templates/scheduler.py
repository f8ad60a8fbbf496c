"""The scheduler `new_thing`: a linear decay of the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Register, SchedulerParams, hookimpl

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class NewThing(SchedulerParams):
    """A straight line from the optimizer's learning rate to `end` times that."""

    end: float = Field(0.0, ge=0, le=1, description="share of the learning rate at the end")

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the schedule; its `step()` is called after each of `total_steps` batches."""
        from torch.optim import lr_scheduler  # here, so that `torchyard plugins` stays quick

        return lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=self.end, total_iters=total_steps
        )


@hookimpl
def register_schedulers(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
