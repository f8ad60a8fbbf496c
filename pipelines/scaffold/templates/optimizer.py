"""The optimizer `new_thing`: a step along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat

from torchyard import OptimizerParams, Register, hookimpl

if TYPE_CHECKING:
    import torch


class NewThing(OptimizerParams):
    """Sign descent, w ← w − lr·sign(g): each weight moves by the learning rate."""

    lr: PositiveFloat = Field(1e-3, description="learning rate")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer; its class is made here because its base is torch's."""
        import torch  # here, so that `torchyard plugins` stays quick

        class _Optimizer(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    for weight in group["params"]:
                        if weight.grad is not None:
                            # From the group: the scheduler sets the learning rate there.
                            weight.sub_(weight.grad.sign(), alpha=group["lr"])

        return _Optimizer(parameters, {"lr": self.lr})


@hookimpl
def register_optimizers(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
