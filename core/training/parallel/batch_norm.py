"""Batch norm over the whole batch of several processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's `nn.SyncBatchNorm`, on a CPU, too.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html takes samples on a
    GPU alone. On a CPU the sums are exchanged here: mean first, then the squared distances from it,
    so that nothing is lost where a mean is large.
    """

    process_group = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """N x C x … to the same shape; the statistics are of all processes' samples."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        values = input.float()
        axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        here = values.new_tensor([values.numel() / values.shape[1]])
        sums = all_reduce(torch.cat([values.sum(axes), here]))  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        squares = all_reduce(centred.square().sum(axes))  # type: ignore[no-untyped-call]
        variance = squares / count
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        output: torch.Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # the mean of all batches
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronize(network: nn.Module) -> None:
    """Have the batch norms of a network take in the samples of all processes.

    The modules stay the same ones, with their weights and statistics.
    """
    for module in network.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncBatchNorm
