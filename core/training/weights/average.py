"""An exponential moving average of the weights, often better than the last ones.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); the average
itself is that of https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of the weights after every step.

    Parameters and buffers of floats are averaged alike, so that the statistics of batch norm fit
    the weights they are evaluated with; counters are copied.

    Args:
        network: on its device.
        decay: of the average, at most: after n steps it is (1 + n) / (10 + n) at most, so that the
            initial weights are soon forgotten (as TensorFlow and timm have it).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay, self._steps = network, decay, 0
        self._averages = {name: each.detach().clone() for name, each in self._current().items()}

    def update(self) -> None:
        """Take in the weights that the network has now."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        averages, current = [], []
        for name, tensor in self._current().items():
            if tensor.is_floating_point():
                averages.append(self._averages[name])
                current.append(tensor.detach())
            else:
                self._averages[name].copy_(tensor)
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(averages, current, self._steps)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Exchange the network's weights for their average, and back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def copy_to_network(self) -> None:
        """Make the average the network's weights."""
        with torch.no_grad():
            for name, tensor in self._current().items():
                tensor.copy_(self._averages[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._steps = state["steps"]
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])

    def _exchange(self) -> None:
        with torch.no_grad():
            for name, tensor in self._current().items():
                before = tensor.clone()
                tensor.copy_(self._averages[name])
                self._averages[name].copy_(before)

    def _current(self) -> dict[str, torch.Tensor]:
        # Looked up each time: a module may put another tensor in a buffer's place.
        return dict(self._network.named_parameters()) | dict(self._network.named_buffers())
