"""Pairs of samples mixed, and their targets with them: mixup, CutMix, either of the two.

Each sample has the one before it in the batch for a partner; the order of a batch is random. How
much of it remains is drawn for each sample, where the papers draw once a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat

from torchyard import Mixing, MixingParams, Register, hookimpl
from torchyard.plugins.augmentations.images import (
    chance,
    change,
    image_shape,
    inside,
    per_sample,
    uniform,
)

if TYPE_CHECKING:
    import torch


class MixUp(MixingParams):
    """Blend each sample with another one, and their targets alike (Zhang et al., arXiv:1710.09412).

    The sample's own weight is drawn from Beta(alpha, alpha). For images, vectors and signals.
    """

    alpha: PositiveFloat = Field(1.0, description="of the beta distribution; small: mixed little")
    p: float = Field(1.0, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Mixing:
        """Make the blend."""

        def mix(
            samples: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            mixed, share = _blended(samples, samples, chance(samples, self.p), self.alpha)
            return mixed, _shared(targets, share)

        return mix


class CutMix(MixingParams):
    """Put a part of another image into each, its target's share the area (arXiv:1905.04899).

    Yun et al.: the rectangle has the aspect ratio of the image and its centre anywhere; the image's
    own share of the area is drawn from Beta(alpha, alpha), and more where the border cuts it off.
    """

    alpha: PositiveFloat = Field(1.0, description="of the beta distribution")
    p: float = Field(1.0, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Mixing:
        """Make the change."""
        image_shape(input_shape)

        def mix(
            samples: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            mixed, share = _pasted(samples, samples, chance(samples, self.p), self.alpha)
            return mixed, _shared(targets, share)

        return mix


class MixUpOrCutMix(MixingParams):
    """mixup or CutMix, drawn for each image: names and defaults are timm's."""

    mixup_alpha: PositiveFloat = Field(0.8, description="mixup's alpha")
    cutmix_alpha: PositiveFloat = Field(1.0, description="CutMix's alpha")
    switch_prob: float = Field(0.5, ge=0, le=1, description="probability of CutMix")
    p: float = Field(1.0, ge=0, le=1, description="probability of either")

    def build(self, input_shape: tuple[int, ...]) -> Mixing:
        """Make the change."""
        image_shape(input_shape)

        def mix(
            samples: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            chosen, cut = chance(samples, self.p), chance(samples, self.switch_prob)
            mixed, blended = _blended(samples, samples, chosen & ~cut, self.mixup_alpha)
            mixed, pasted = _pasted(mixed, samples, chosen & cut, self.cutmix_alpha)
            return mixed, _shared(targets, blended * pasted)

        return mix


def _blended(
    samples: torch.Tensor, originals: torch.Tensor, chosen: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples, the chosen ones blended with their partners, and each one's own weight."""
    if samples.dtype.is_floating_point or samples.dtype.itemsize == 1:
        share = _own_share(chosen, alpha)
        return change(samples, chosen, _blend, originals.roll(1, 0), share), share
    raise ValueError("mixes images, vectors and signals, not token ids")


def _blend(samples: torch.Tensor, others: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    own = per_sample(share, samples)
    mixed = samples * own + others * (1 - own)
    return mixed if samples.is_floating_point() else mixed.round_().to(samples.dtype)


def _pasted(
    samples: torch.Tensor, originals: torch.Tensor, chosen: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images, the chosen ones with a part of their partners, and each one's own share."""
    height, width = samples.shape[-2:]
    half = (1 - _own_share(chosen, alpha)).sqrt() / 2
    bounds = []
    for side in (height, width):
        reach, centre = (half * side).floor(), uniform(samples, 0, side).floor()
        bounds += [(centre - reach).clamp(min=0), (centre + reach).clamp(max=side)]
    top, bottom, left, right = bounds
    share = 1 - (bottom - top) * (right - left) / (height * width)
    rectangle = (top, left, bottom, right)
    return change(samples, chosen, _paste, originals.roll(1, 0), *rectangle), share


def _paste(samples: torch.Tensor, others: torch.Tensor, *rectangle: torch.Tensor) -> torch.Tensor:
    return others.where(inside(samples, *rectangle), samples)


def _own_share(chosen: torch.Tensor, alpha: float) -> torch.Tensor:
    """Numbers from Beta(alpha, alpha), and 1 where a sample is not chosen."""
    import torch

    # A quotient of gamma variates, in logarithms: of a small alpha they are less than any float32.
    # One of alpha is one of alpha + 1 times a uniform number to the power of 1 / alpha.
    shape = torch.full((2, len(chosen)), alpha + 1, device=chosen.device)
    gamma = torch.distributions.Gamma(shape, torch.ones_like(shape), validate_args=False).sample()
    logarithms = gamma.log() + torch.rand_like(shape).log() / alpha
    return torch.where(chosen, (logarithms[0] - logarithms[1]).sigmoid(), 1.0)


def _shared(targets: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return targets * share[:, None] + targets.roll(1, 0) * (1 - share[:, None])


@hookimpl
def register_augmentations(register: Register) -> None:
    register("mixup", MixUp)
    register("cutmix", CutMix)
    register("mixup_or_cutmix", MixUpOrCutMix)
