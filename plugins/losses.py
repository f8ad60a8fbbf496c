"""Losses on logits and class indices, most of them on soft targets as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat

from torchyard import LossParams, Register, hookimpl

if TYPE_CHECKING:
    import torch

Balanced = Literal["balanced"]
ONE_PER_CLASS = "one weight per class; balanced: all samples / (classes * samples of the class)"


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """n / (K * n_c) of each class c, K being the classes that have samples; 0 for the others.

    The mean over the samples is 1, as with scikit-learn's `compute_class_weight("balanced")`.
    """
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 0.0 for count in counts)


def _weight_tensor(
    weight: tuple[float, ...] | Balanced | None, num_classes: int, name: str = "weight"
) -> torch.Tensor | None:
    import torch

    if weight is None:
        return None
    if isinstance(weight, str):
        raise ValueError(f"{name}={weight} needs the class counts: call with_class_counts first")
    if len(weight) != num_classes:
        raise ValueError(f"{name} has {len(weight)} values, the data has {num_classes} classes")
    return torch.tensor(weight, dtype=torch.float32)


def _one_hot(base: type[torch.nn.Module], num_classes: int) -> Callable[..., torch.nn.Module]:
    """The class of a loss that takes class indices, of which `base` gets the one-hot vectors.

    Soft targets it gets as they are.
    """
    import torch

    class _OneHotLoss(base):  # type: ignore[misc, valid-type]
        def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if not targets.is_floating_point():
                targets = torch.nn.functional.one_hot(targets, num_classes)
            loss: torch.Tensor = super().forward(logits, targets.to(logits.dtype))
            return loss

    return _OneHotLoss


class _Weighted(LossParams):
    """A loss with a weight for each class."""

    weight: tuple[NonNegativeFloat, ...] | Balanced | None = Field(None, description=ONE_PER_CLASS)

    def with_class_counts(self, counts: Sequence[int]) -> Self:
        """With the weights that are balanced for these counts."""
        chosen = balanced_weights(counts) if self.weight == "balanced" else self.weight
        return self.model_copy(update={"weight": chosen})


class CrossEntropy(_Weighted):
    """Cross-entropy of the softmax of the logits (torch.nn.CrossEntropyLoss).

    With weights the mean of soft targets is over the sum of their weights, as it is with class
    indices; torch's own is over the samples then.
    """

    takes_soft_targets = True
    label_smoothing: float = Field(0.0, ge=0, le=1)

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.CrossEntropyLoss."""
        import torch

        class _CrossEntropy(torch.nn.CrossEntropyLoss):
            def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                if self.weight is None or not targets.is_floating_point():
                    return super().forward(logits, targets)
                total = torch.nn.functional.cross_entropy(
                    logits,
                    targets,
                    self.weight,
                    label_smoothing=self.label_smoothing,
                    reduction="sum",
                )
                return total / (targets @ self.weight).sum()

        return _CrossEntropy(
            weight=_weight_tensor(self.weight, num_classes), label_smoothing=self.label_smoothing
        )


class NegativeLogLikelihood(_Weighted):
    """Negative log-likelihood (torch.nn.NLLLoss) of the log-softmax of the logits.

    A network that ends in log-softmax itself may be used: applied twice, log-softmax
    changes nothing. Soft targets are taken as in cross_entropy.
    """

    takes_soft_targets = True

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make log-softmax followed by a torch.nn.NLLLoss."""
        import torch

        class _LogSoftmaxNLL(torch.nn.NLLLoss):
            def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                log_p = logits.log_softmax(dim=1)
                if not targets.is_floating_point():
                    return super().forward(log_p, targets)
                weighted = targets if self.weight is None else targets * self.weight
                return -(weighted * log_p).sum() / weighted.sum()

        return _LogSoftmaxNLL(weight=_weight_tensor(self.weight, num_classes))


class MeanSquaredError(LossParams):
    """Mean squared error of the logits against one-hot targets (torch.nn.MSELoss)."""

    takes_soft_targets = True

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.MSELoss that takes class indices and soft targets."""
        import torch

        return _one_hot(torch.nn.MSELoss, num_classes)()


class SmoothL1(LossParams):
    """Smooth L1 of the logits against one-hot targets (torch.nn.SmoothL1Loss).

    Half the squared error over beta where the error is below beta, elsewhere the absolute
    error less beta / 2, so that outliers have a bounded gradient (Girshick, arXiv:1504.08083).
    beta=0 is the absolute error.
    """

    takes_soft_targets = True
    beta: NonNegativeFloat = Field(1.0, description="error up to which it is squared")

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.SmoothL1Loss that takes class indices and soft targets."""
        import torch

        return _one_hot(torch.nn.SmoothL1Loss, num_classes)(beta=self.beta)


class BinaryCrossEntropy(LossParams):
    """Binary cross-entropy of each logit's sigmoid (torch.nn.BCEWithLogitsLoss).

    Against one-hot targets, the mean over samples and classes: each class is a binary
    classification of its own.
    """

    takes_soft_targets = True
    pos_weight: tuple[PositiveFloat, ...] | Balanced | None = Field(
        None,
        description="one weight per class, of its positive samples; balanced: samples of the "
        "other classes / samples of the class",
    )

    def with_class_counts(self, counts: Sequence[int]) -> Self:
        """With weights with which each class's positive samples weigh as much as the others.

        A class that all samples are of, or none, has a weight of 1.
        """
        total, chosen = sum(counts), self.pos_weight
        if chosen == "balanced":
            chosen = tuple((total - n) / n if 0 < n < total else 1.0 for n in counts)
        return self.model_copy(update={"pos_weight": chosen})

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make a torch.nn.BCEWithLogitsLoss that takes class indices and soft targets."""
        import torch

        return _one_hot(torch.nn.BCEWithLogitsLoss, num_classes)(
            pos_weight=_weight_tensor(self.pos_weight, num_classes, "pos_weight")
        )


class Focal(LossParams):
    """Focal loss, -(1 - p)^gamma log p with p the softmax at the target (arXiv:1708.02002).

    Lin et al.'s loss for many classes: samples predicted with confidence weigh little. gamma=0
    is the cross-entropy. Each sample is scaled by its class's alpha, and the mean is over
    the samples, where cross_entropy divides by the sum of the weights. It is defined for one class
    a sample, so it takes no soft targets.
    """

    gamma: NonNegativeFloat = Field(2.0, description="how little a confident sample weighs")
    alpha: tuple[NonNegativeFloat, ...] | Balanced | None = Field(None, description=ONE_PER_CLASS)

    def with_class_counts(self, counts: Sequence[int]) -> Self:
        """With the weights that are balanced for these counts."""
        chosen = balanced_weights(counts) if self.alpha == "balanced" else self.alpha
        return self.model_copy(update={"alpha": chosen})

    def build(self, num_classes: int) -> torch.nn.Module:
        """Make the loss; its class is made here because its base is torch's."""
        import torch

        gamma = self.gamma

        class _Focal(torch.nn.Module):
            alpha: torch.Tensor | None

            def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                log_p = logits.log_softmax(dim=1)
                target = targets[:, None]
                loss = -log_p.gather(1, target).squeeze(1)
                if gamma:
                    # log(1 - p) from the other classes: 1 - p rounds to 0 where p is near 1,
                    # and the gradient of 0^gamma is infinite or, times 0, NaN.
                    log_rest = log_p.scatter(1, target, -torch.inf).logsumexp(dim=1)
                    loss = (gamma * log_rest).exp() * loss
                if self.alpha is not None:
                    loss = self.alpha[targets] * loss
                return loss.mean()

        loss = _Focal()
        loss.register_buffer("alpha", _weight_tensor(self.alpha, num_classes, "alpha"))
        return loss


@hookimpl
def register_losses(register: Register) -> None:
    register("cross_entropy", CrossEntropy)
    register("nll", NegativeLogLikelihood)
    register("mse", MeanSquaredError)
    register("smooth_l1", SmoothL1)
    register("bce_with_logits", BinaryCrossEntropy)
    register("focal", Focal)
