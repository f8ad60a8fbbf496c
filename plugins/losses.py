"""Losses on logits and class indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat

from core import LossParams, Register, hookimpl

if TYPE_CHECKING:
    import torch


def _weight_tensor(weight: tuple[float, ...] | None, num_classes: int) -> torch.Tensor | None:
    import torch

    if weight is None:
        return None
    if len(weight) != num_classes:
        raise ValueError(f"weight has {len(weight)} values, the data has {num_classes} classes")
    return torch.tensor(weight, dtype=torch.float32)


class CrossEntropy(LossParams):
    """Cross-entropy of the softmax of the logits (torch.nn.CrossEntropyLoss)."""

    weight: tuple[NonNegativeFloat, ...] | None = Field(None, description="one weight a class")
    label_smoothing: float = Field(0.0, ge=0, le=1)

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.CrossEntropyLoss."""
        import torch

        return torch.nn.CrossEntropyLoss(
            weight=_weight_tensor(self.weight, num_classes), label_smoothing=self.label_smoothing
        )


class NegativeLogLikelihood(LossParams):
    """Negative log-likelihood (torch.nn.NLLLoss) of the log-softmax of the logits.

    A network that ends in log-softmax itself may be used: applied twice, log-softmax
    changes nothing.
    """

    weight: tuple[NonNegativeFloat, ...] | None = Field(None, description="one weight a class")

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make log-softmax followed by a torch.nn.NLLLoss."""
        import torch

        class _LogSoftmaxNLL(torch.nn.NLLLoss):
            def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                return super().forward(logits.log_softmax(dim=1), targets)

        return _LogSoftmaxNLL(weight=_weight_tensor(self.weight, num_classes))


class MeanSquaredError(LossParams):
    """Mean squared error of the logits against one-hot targets (torch.nn.MSELoss)."""

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.MSELoss that takes class indices."""
        import torch

        class _OneHotMSE(torch.nn.MSELoss):
            def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                one_hot = torch.nn.functional.one_hot(targets, num_classes)
                return super().forward(logits, one_hot.to(logits.dtype))

        return _OneHotMSE()


@hookimpl
def register_losses(register: Register) -> None:
    register("cross_entropy", CrossEntropy)
    register("nll", NegativeLogLikelihood)
    register("mse", MeanSquaredError)
