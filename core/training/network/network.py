"""The network that is trained, evaluated and served: normalization first, then the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from torchyard.core.config.choices import Normalization
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions


class Normalize(nn.Module):
    """(x - mean) / std as a layer, from the samples as they are stored.

    Args:
        mean, std: one value, or one per channel or component; of images on the scale 0 to 1.
        shape: one sample, (C, H, W), (D,) or (C, L).
        scale: what a stored value is divided by first: 255 for uint8 images, 1 for floats.

    Attributes:
        order: the memory format of the output.
    """

    order = torch.contiguous_format
    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], shape: tuple[int, ...], scale: float
    ) -> None:
        super().__init__()
        view = (1, -1) + (1,) * (len(shape) - 1)
        means = torch.tensor(mean, dtype=torch.float64).view(view)
        stds = torch.tensor(std, dtype=torch.float64).view(view)
        # A constant channel is centred only: dividing by its deviation would be by zero.
        stds = torch.where(stds == 0, 1.0, stds)
        self.register_buffer("factor", (1 / (scale * stds)).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Raw samples N x shape, of any type, to normalized float32 of that shape."""
        # Two passes: `addcmul` is not vectorized for these shapes, which takes longer. Over one
        # copy: memory that is fresh from the system takes longer than the arithmetic.
        normalized = samples.to(torch.float32, copy=True).mul_(self.factor).add_(self.shift)
        return normalized.contiguous(memory_format=self.order)


class Network(nn.Module):
    """Normalization, then the model: raw samples N x shape to logits N x classes.

    Args:
        model: normalized float32 N x shape, or int64 token ids, to logits.
        data: the data set, whose statistics are used.
        normalize: "statistics" or "auto", which leave token ids as they are; or (mean, std), for
            all channels alike or of each.
    """

    def __init__(self, model: nn.Module, data: PreparedDataset, normalize: Normalization) -> None:
        super().__init__()
        mean, std = data.mean, data.std
        if not isinstance(normalize, str):
            mean, std = (value if isinstance(value, tuple) else (value,) for value in normalize)
        scale = 255.0 if data.dtype == "uint8" else 1.0
        self.normalize: nn.Module = nn.Identity()
        if model_input(data.spec, normalize) == torch.float32:
            self.normalize = Normalize(mean, std, data.shape, scale)
        self.model = model
        self.views: nn.Module | None = None
        self.temperature: torch.Tensor | None
        self.register_buffer("temperature", None)  # is not among the weights while it is None

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Raw samples to logits; with views, to the mean of theirs; divided by the temperature."""
        logits: torch.Tensor
        if self.views is None:
            logits = self.model(self.normalize(samples))
        else:
            seen = (w * self.model(self.normalize(view)) for view, w in self.views(samples))
            logits = torch.stack(list(seen)).sum(0)
        return logits if self.temperature is None else logits / self.temperature


def check_normalization(spec: SampleSpec, normalize: Normalization) -> None:
    """Refuse values of other channels than the samples have.

    Raises:
        UserError: there are neither one nor as many as channels.
    """
    mean = () if isinstance(normalize, str) else normalize[0]
    if isinstance(mean, tuple) and len(mean) not in (0, 1, spec.shape[0]):
        raise UserError(
            f"dataset.normalize: has a mean and std for {len(mean)} channels, and the samples of "
            f"{dimensions(spec.shape)} have {spec.shape[0]}"
        )


def model_input(spec: SampleSpec, normalize: Normalization) -> torch.dtype:
    """The type of the samples that a model is given: int64 for token ids, else float32."""
    kept = spec.dtype == "int64" and isinstance(normalize, str)
    return torch.int64 if kept else torch.float32


def weights_digest(network: nn.Module, *, by_name: bool = False) -> str:
    """sha256 of every parameter and buffer, under the names they have and in their order.

    An exported network has another order: `by_name` takes them in that of their names.
    """
    digest = hashlib.sha256()
    weights = network.state_dict()
    for name, tensor in sorted(weights.items()) if by_name else weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Flat first: a tensor of no dimension (batch norm's counter) has no bytes to view.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
