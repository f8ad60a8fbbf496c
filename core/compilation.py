"""The gradients of a batch from one compiled function, for batches too small for Python.

LeNet at batch 4 spends half of a step between the operations; compiled it trains 4,400
images/s instead of 3,100, on one core. What is compiled is kept in the cache folder, where the
next run finds it in 3 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from core.errors import RunError
from core.parameters import Loss

# cpp_wrapper: the kernels are called from C++, 8 % faster than from Python.
# layout_optimization: torch's own convolutions want channels first; 4,300 instead of 3,500.
# guard_filter_fn: `takes` is all that can change, the usual guards cost 90 of 800 µs.
# fallback_random: dropout draws what it would draw uncompiled.
OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "layout_optimization": False,
    "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    "fallback_random": True,
}


class CompiledGradients:
    """Forward and backward in one function of weights, samples and targets.

    https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

    Args:
        network: in training mode.
        loss_function: (logits, targets) to a scalar.
        inputs, targets: a batch; others of their shape and type can be taken.

    Attributes:
        seconds: how long compiling took.

    Raises:
        RunError: this network or loss cannot be compiled here.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_function: Loss,
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> None:
        weights = dict(network.named_parameters())
        self._trained = {name: w for name, w in weights.items() if w.requires_grad}
        self._rest = dict(network.named_buffers())
        self._rest |= {name: w for name, w in weights.items() if not w.requires_grad}
        self._shape, self._dtype = inputs.shape, inputs.dtype

        def loss_of(
            trained: dict[str, torch.Tensor],
            rest: dict[str, torch.Tensor],
            inputs: torch.Tensor,
            targets: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.func.functional_call(network, (trained, rest), (inputs,))
            return loss_function(logits, targets), logits

        differentiated = torch.func.grad_and_value(loss_of, has_aux=True)

        def gradients(*batch: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
            found, (loss, logits) = differentiated(*batch)
            return found, loss, (logits.argmax(1) == batch[-1]).sum()

        # torch knows what it compiled by the code alone, and nothing guards it: without this a
        # second network in this process would be given the first one's.
        torch.compiler.reset()
        self._gradients: Callable[..., Any] = torch.compile(
            gradients, fullgraph=True, dynamic=False, options=OPTIONS
        )
        begun = time.perf_counter()
        rest = {name: tensor.clone() for name, tensor in self._rest.items()}
        try:
            with torch.random.fork_rng([]), torch.no_grad():
                self._gradients(self._trained, rest, inputs, targets)
        except Exception as error:  # the network and the loss are a plugin's, the rest is torch's
            raise RunError(
                f"train.compile: torch cannot compile this: {str(error).partition(chr(10))[0]}",
                details=str(error),
            ) from error
        self.seconds = time.perf_counter() - begun

    def takes(self, inputs: torch.Tensor) -> bool:
        """Whether a batch has the shape and type that was compiled for."""
        return inputs.shape == self._shape and inputs.dtype == self._dtype

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the weights' gradients; gives the loss and how many were right."""
        with torch.no_grad():
            found, loss, correct = self._gradients(self._trained, self._rest, inputs, targets)
        for name, weight in self._trained.items():
            weight.grad = found[name]
        return loss, correct
