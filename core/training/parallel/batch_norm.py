"""Batch norm over the whole batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """What torch's `nn.SyncBatchNorm` computes, which takes samples on a GPU alone.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
    Means are exchanged first, then the squared distances from them, so that nothing is lost where a
    mean is large.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """N x C x … to the same shape; in training by the statistics of all processes' samples."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        here = values.new_tensor([values.numel() / values.shape[1]])
        sums = _Sum.apply(torch.cat([values.sum(axes), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        output: torch.Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass

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


class _Sum(torch.autograd.Function):
    """The sum over the processes, of the values and of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


def synchronize(network: nn.Module, device: torch.device) -> None:
    """Have the batch norms of a network on that device take in the samples of all processes.

    The modules stay the same ones, with their weights and statistics.
    """
    for module in network.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            if device.type == "cpu":
                module.__class__ = CPUSyncBatchNorm
            else:
                module.__class__ = nn.SyncBatchNorm
                module.process_group = None  # type: ignore[assignment]  # all processes
