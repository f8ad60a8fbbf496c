"""Batch norm over the whole batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """What torch's `nn.SyncBatchNorm` computes, which takes samples on a GPU alone.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """N x C x … to the same shape; in training by the statistics of all processes' samples."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _statistics(input.detach())
        if self.track_running_stats:
            self._follow(mean, variance * count / (count - 1))
        affine: list[torch.Tensor | None] = [None, None]
        if self.affine:
            affine = [self.weight.to(mean.dtype), self.bias.to(mean.dtype)]
        output: torch.Tensor = _Normalize.apply(input, *affine, mean, variance, count, self.eps)
        return output

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


def _statistics(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel in all processes, and how many values each has there.

    Every process's own are exchanged, not sums of squares: nothing is lost where a mean is large
    (Chan, Golub, LeVeque: Algorithms for computing the sample variance, 1983).
    """
    exact = torch.promote_types(inputs.dtype, torch.float32)
    running = torch.zeros(2, inputs.shape[1], dtype=exact)  # whose type the statistics have
    mean, variance = torch.batch_norm_update_stats(inputs, running[0], running[1], 0.0)
    here = torch.cat([mean, variance, mean.new_tensor([inputs.numel() / inputs.shape[1]])])
    gathered = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, here)
    each = torch.stack(gathered)
    means, variances = each[:, :-1].chunk(2, 1)
    count = each[:, -1].sum()
    shares = each[:, -1:] / count
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), count


class _Normalize(torch.autograd.Function):
    """Batch norm by given statistics, with the gradient through them in all processes.

    Each pass over the samples is one of torch's kernels; composed of single operations it takes
    ten times as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        count: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight, mean, variance, count)
        ctx.eps = eps
        return nn.functional.batch_norm(inputs, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, mean, variance, count = ctx.saved_tensors
        # As if the statistics were constants.
        by_inputs, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, inputs, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = torch.stack([by_weight, by_bias])
        dist.all_reduce(sums)
        factor = (variance + ctx.eps).rsqrt()
        if weight is not None:
            factor = factor * weight
        by_weights, by_biases = -factor / count * sums
        by_inputs += nn.functional.batch_norm(
            inputs, mean, variance, by_weights, by_biases, eps=ctx.eps
        )
        if weight is None:
            by_weight = by_bias = None
        return by_inputs, by_weight, by_bias, None, None, None, None


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
