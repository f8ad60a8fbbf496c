"""The order in which an epoch takes the samples: each once, or drawn with replacement.

Every order is a function of the seed and the epoch alone, so a resumed run continues within an
epoch without replaying a generator, and processes that train together have the same.
"""

from __future__ import annotations

import torch

from torchyard.core.data.dataset import Split


def sampled_order(split: Split, sampler: str | None, seed: int, epoch: int) -> torch.Tensor:
    """The order of an epoch, int64, as many as the split has: places in it, counted from 0.

    Args:
        split: of the samples.
        sampler: "shuffle", "balanced" or "weighted"; None: weighted where there are weights.
        seed, epoch: what the order depends on.
    """
    labels, weights = split.labels, split.weights
    if split.indices is not None:
        labels = labels[split.indices]
        weights = None if weights is None else weights[split.indices]
    given = None if weights is None else torch.from_numpy(weights)
    if sampler == "balanced":
        return balanced_order(torch.from_numpy(labels), seed, epoch, given)
    if given is not None and sampler != "shuffle":
        return balanced_order(torch.zeros(len(split), dtype=torch.int64), seed, epoch, given)
    return epoch_order(len(split), seed, epoch)


def sampling(split: Split, sampler: str | None) -> str:
    """In words how an epoch draws samples; "" where it takes each once."""
    if sampler == "balanced":
        weighted = " and in proportion to its samples' weights" * (split.weights is not None)
        return f"classes drawn equally often{weighted}"
    if split.weights is None or sampler == "shuffle":
        return ""
    return "samples drawn in proportion to their weights"


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Every sample once, in random order."""
    return torch.randperm(samples, generator=_generator(seed, epoch))


def balanced_order(
    labels: torch.Tensor, seed: int, epoch: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """As many samples as there are, drawn with replacement, each class equally often.

    The numbers of draws of two classes differ by one at most; who has one more is random.

    Args:
        labels: int64 N, class indices.
        seed, epoch: what the order depends on.
        weights: float64 N; the samples of a class are drawn in proportion to them. None: alike.
    """
    generator = _generator(seed, epoch)
    chosen = torch.argsort(labels, stable=True)
    if weights is not None:
        chosen = chosen[weights[chosen] > 0]
    sizes = labels[chosen].bincount()
    sizes = sizes[sizes > 0]
    draws = torch.full_like(sizes, len(labels) // len(sizes))
    draws[torch.randperm(len(sizes), generator=generator)[: len(labels) % len(sizes)]] += 1
    # The classes' samples lie one after another on a line, each as long as its weight.
    last = sizes.cumsum(0) - 1
    lengths = torch.ones(len(chosen), dtype=torch.float64) if weights is None else weights[chosen]
    ends = lengths.cumsum(0)
    end = ends[last]
    start = torch.cat([end.new_zeros(1), end[:-1]])
    spread = torch.rand(len(labels), dtype=torch.float64, generator=generator)
    points = start.repeat_interleave(draws) + spread * (end - start).repeat_interleave(draws)
    places = torch.searchsorted(ends, points, right=True)
    first = (last - sizes + 1).repeat_interleave(draws)  # against rounding
    places = places.clamp(first, last.repeat_interleave(draws))
    return chosen[places[torch.randperm(len(labels), generator=generator)]]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
