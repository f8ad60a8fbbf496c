"""The augmentation `new_thing`: images turned upside down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Augmentation, AugmentationParams, Register, hookimpl

if TYPE_CHECKING:
    import torch


class NewThing(AugmentationParams):
    """Mirror each image top to bottom with probability p."""

    p: float = Field(0.5, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make a callable (uint8 N x C x H x W, indices, epoch) -> uint8 N x C x H x W.

        Raises:
            ValueError: the samples are not images.
        """
        import torch  # here, so that `torchyard plugins` stays quick

        if len(input_shape) != 3:
            raise ValueError("changes images, not vectors")
        p = self.p

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            # On the samples' device, whose generator is saved in checkpoints.
            chosen = torch.rand(len(samples), device=samples.device) < p
            return torch.where(chosen[:, None, None, None], samples.flip(-2), samples)

        return flip


@hookimpl
def register_augmentations(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
