"""Muon, the optimizer of CIFAR-10's speed records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from core import OptimizerParams, Register, hookimpl

if TYPE_CHECKING:
    import torch

# Of x → ax + bx³ + cx⁵: it takes any singular value between 0 and 1 to near 1 in few steps.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(OptimizerParams):
    """Orthogonalized momentum for convolutions, Nesterov's for all other weights.

    The momentum of a convolution, a matrix with a row a filter, is made nearly orthogonal by
    Newton and Schulz's iteration, so that no direction of the gradient drowns the others
    (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, and their
    airbench94_muon). A step turns the filters by about lr, in radians, and keeps their norm,
    which batch norm takes out anyway: it is meant for convolutions that batch norm follows.
    """

    lr: PositiveFloat = Field(0.02, description="learning rate; of convolutions an angle")
    momentum: float = Field(0.6, gt=0, lt=1)
    weight_decay: NonNegativeFloat = Field(0.0, description="of all but the convolutions")
    others: PositiveFloat = Field(
        10.0, description="learning rate of all but the convolutions, in multiples of lr"
    )
    ns_steps: PositiveInt = Field(3, description="Newton-Schulz iterations")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer; its class is made here because its base is torch's."""
        import torch

        others, ns_steps = self.others, self.ns_steps

        class _Muon(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    lr, momentum = group["lr"], group["momentum"]
                    for weight in group["params"]:
                        if weight.grad is None:
                            continue
                        slope, convolution = weight.grad, weight.dim() == 4
                        if not convolution:
                            slope = slope.add(weight, alpha=group["weight_decay"])
                        state = self.state[weight]
                        if not state:
                            state["momentum_buffer"] = torch.zeros_like(weight)
                        velocity = state["momentum_buffer"].mul_(momentum).add_(slope)
                        ahead = slope.add(velocity, alpha=momentum)
                        if not convolution:
                            weight.sub_(ahead, alpha=others * lr)
                            continue
                        turn = _orthogonal(ahead.flatten(1), ns_steps).view_as(weight)
                        norm = weight.norm()
                        weight.sub_(turn.to(weight.dtype) * (lr * norm / turn.norm()))
                        weight.mul_(norm / weight.norm())

        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return _Muon(parameters, {"lr": self.lr, **settings})


def _orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The nearest matrix whose rows (or columns, where they are fewer) are orthonormal, roughly.

    Every step multiplies from the left by a polynomial of xxᵀ. These are multiplied among
    themselves, for they are the smaller: of 192 x 1728 three steps take 1.5 ms instead of 3.7.
    """
    import torch

    a, b, c = QUINTIC
    x: torch.Tensor = matrix.float()
    x = x / (x.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    square = x @ x.T
    total = torch.eye(len(x), device=x.device)
    for _ in range(steps):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        total = factor @ total
        square = factor @ square @ factor
    x = total @ x
    return x.T if tall else x


@hookimpl
def register_optimizers(register: Register) -> None:
    register("muon", Muon)
