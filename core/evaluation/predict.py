"""Predicting a split with a network; the rest of an evaluation does not need torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.dataset import rows_of
from torchyard.core.data.images.photos import EncodedSamples, Wanted
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError

if TYPE_CHECKING:
    import torch

    from torchyard.core.data.dataset import Labels, Samples


# The float32 samples of one batch. Activations grow with the sample, so that a limit in bytes keeps
# memory the same for images of 8 pixels and of 500. Larger batches are slower on a CPU: each of
# their activations is memory fresh from the system.
CPU_BATCH_BYTES = 4 * 2**20
BATCH_BYTES = 32 * 2**20


def predict(
    network: torch.nn.Module,
    samples: Samples | torch.Tensor,
    labels: Labels | torch.Tensor,
    *,
    device: torch.device | str,
    indices: npt.NDArray[np.int64] | None = None,
    batch_size: int | None = None,
) -> Predictions:
    """Run a network in evaluation mode over all samples, or those at `indices`.

    Everything is computed in float32, whatever precision the training used: the network is
    evaluated as it is served. Every module's mode is restored afterwards.

    Args:
        network: on `device`; takes the raw samples, its first layer normalizes.
        samples: as they are stored, N x shape: an array or memory map, of which one batch at a
            time is sent to the device, or a tensor on the device.
        labels: N class indices.
        device: of the network.
        indices: of the samples and labels to use; None: all.
        batch_size: None: as many as make 4 MiB on a CPU, 32 MiB on other devices.

    Raises:
        RunError: there are no samples, the output is not N x K, or it is not finite.
    """
    import torch

    rows = samples if isinstance(samples, torch.Tensor) else rows_of(samples)
    count = len(rows if indices is None else indices)
    if count == 0:
        raise RunError("There is no sample to evaluate.")
    device = torch.device(device)
    if batch_size is None:
        budget = CPU_BATCH_BYTES if device.type == "cpu" else BATCH_BYTES
        batch_size = max(1, budget // (4 * math.prod(samples.shape[1:])))
    # By default cuDNN rounds convolutions to TF32; the network as served on a CPU does not.
    cudnn: Any = torch.backends.cudnn
    precision, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "ieee"
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    logits = np.empty((0, 0), dtype=np.float32)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for start, batch in _batches(rows, indices, count, batch_size):
                if isinstance(batch, np.ndarray):
                    # torch shares the memory of writable arrays only.
                    batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
                output = network(batch.to(device))
                if output.ndim != 2 or len(output) != len(batch):
                    shape = tuple(output.shape)
                    raise RunError(f"The network makes {shape} of {len(batch)} samples, not N x K.")
                if start == 0:
                    logits = np.empty((count, output.shape[1]), dtype=np.float32)
                logits[start : start + len(output)] = output.float().cpu().numpy()
    finally:
        cudnn.conv.fp32_precision = precision
        for module, training in modes:
            module.training = training

    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise RunError(
            f"The network's output is NaN or infinite for {len(broken):,} of {count:,} "
            f"samples, first for number {broken[0]:,}: its weights are no longer usable."
        )
    targets = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    targets = targets if indices is None else targets[indices]
    return Predictions(logits, targets.astype(np.int64))


def _batches(
    rows: Any, indices: npt.NDArray[np.int64] | None, count: int, batch_size: int
) -> Iterator[tuple[int, Any]]:
    """The rows in batches, each with where it begins; encoded images are decoded ahead."""
    starts = range(0, count, batch_size)
    if isinstance(rows, EncodedSamples):
        chosen = np.arange(count) if indices is None else indices
        wanted = (Wanted(chosen[start : start + batch_size], None, start) for start in starts)
        for pixels, start in rows.decoded(wanted):
            yield start, pixels
        return
    for start in starts:
        part = slice(start, start + batch_size)
        yield start, rows[part if indices is None else indices[part]]
