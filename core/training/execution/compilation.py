"""A training step in one compiled function, for batches too small for Python.

LeNet at batch 4 spends half of a step between the operations: compiled with plain SGD it trained
5,700 images/s instead of 3,300, on one core; where the optimizer has to update the weights by
itself, 4,600; and 1.2 times as many since its convolutions are matrix products. What is compiled
is kept in the cache folder, where the next run finds it in 3 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchyard.core.errors import RunError
from torchyard.core.hosting.params import Loss
from torchyard.core.training.execution.convolutions import unrolled_convolutions

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

Tensors = dict[str, torch.Tensor]
Update = Callable[[Tensors, Tensors, Tensors, torch.Tensor], None]


class CompiledStep:
    """Forward, backward and, where the optimizer is SGD, the update in one function.

    https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

    Args:
        network: in training mode.
        loss_function: (logits, targets) to a scalar.
        optimizer: of the network's trained weights.
        inputs, targets: a batch; others of their shape and type can be taken.
        gradients_used: by others than the optimizer, so that they must be set.

    Attributes:
        updates: whether a call updates the weights; else it sets their gradients, and
            `optimizer.step()` is to follow.
        seconds: how long compiling took.

    Raises:
        RunError: this network or loss cannot be compiled here.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_function: Loss,
        optimizer: torch.optim.Optimizer,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        *,
        gradients_used: bool = False,
    ) -> None:
        weights = dict(network.named_parameters())
        self._trained: Tensors = {name: w for name, w in weights.items() if w.requires_grad}
        self._rest: Tensors = dict(network.named_buffers())
        self._rest |= {name: w for name, w in weights.items() if not w.requires_grad}
        self._shape, self._dtype = inputs.shape, inputs.dtype
        self._optimizer = optimizer
        update = None if gradients_used else _sgd(optimizer)
        self.updates = update is not None
        # Once for all: what is compiled has velocities or has none, and no guard would notice.
        self._has_velocities = self.updates and bool(optimizer.param_groups[0]["momentum"])

        def loss_of(
            trained: Tensors, rest: Tensors, inputs: torch.Tensor, targets: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.func.functional_call(network, (trained, rest), (inputs,))
            return loss_function(logits, targets), logits

        differentiated = torch.func.grad_and_value(loss_of, has_aux=True)

        def step(
            velocities: Tensors, rates: torch.Tensor, trained: Tensors, *batch: Any
        ) -> tuple[Tensors, torch.Tensor, torch.Tensor]:
            gradients, (loss, logits) = differentiated(trained, *batch)
            correct = (logits.argmax(1) == batch[-1]).sum()
            if update is None:
                return gradients, loss, correct
            update(trained, gradients, velocities, rates)
            return {}, loss, correct

        # torch knows what it compiled by the code alone, and nothing guards it: without this a
        # second network in this process would be given the first one's.
        torch.compiler.reset()
        # A copy: torch takes the filter of guards out of what it is given.
        self._step: Callable[..., Any] = torch.compile(
            step, fullgraph=True, dynamic=False, options=dict(OPTIONS)
        )
        begun = time.perf_counter()
        try:
            velocities, trained, rest = (
                {name: tensor.clone() for name, tensor in tensors.items()}
                for tensors in self._changing()
            )
            with torch.random.fork_rng([]), torch.no_grad(), unrolled_convolutions():
                self._step(velocities, self._rates(), trained, rest, inputs, targets)
        except Exception as error:  # the network and the loss are a plugin's, the rest is torch's
            raise RunError(
                f"train.compile: torch cannot compile this: {str(error).partition(chr(10))[0]}",
                details=str(error),
            ) from error
        self.seconds = time.perf_counter() - begun
        if self.updates:
            # Without gradients nothing changes, but the schedule would miss a first step.
            optimizer.step()

    def takes(self, inputs: torch.Tensor) -> bool:
        """Whether a batch has the shape and type that was compiled for."""
        return inputs.shape == self._shape and inputs.dtype == self._dtype

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights, or set their gradients; gives the loss and how many were right."""
        velocities, trained, rest = self._changing()
        with torch.no_grad():
            gradients, loss, correct = self._step(
                velocities, self._rates(), trained, rest, inputs, targets
            )
        for name, gradient in gradients.items():
            trained[name].grad = gradient
        return loss, correct

    def _changing(self) -> tuple[Tensors, Tensors, Tensors]:
        """Velocities, weights and buffers: what a step may change."""
        velocities = {}
        if self._has_velocities:
            # Asked for anew each time: a checkpoint that is loaded puts others in their place.
            state = self._optimizer.state
            for name, weight in self._trained.items():
                if state[weight].get("momentum_buffer") is None:
                    state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                velocities[name] = state[weight]["momentum_buffer"]
        return velocities, self._trained, self._rest

    def _rates(self) -> torch.Tensor:
        """Learning rate and momentum, which a schedule may change."""
        group = self._optimizer.param_groups[0]
        return torch.tensor([group["lr"], group.get("momentum", 0.0)], dtype=torch.float64)


def _sgd(optimizer: torch.optim.Optimizer) -> Update | None:
    """The update of torch.optim.SGD as a function that can be compiled; None of all others.

    With dampening the first velocity follows a rule of its own: that is left to torch, too.
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    group, *others = optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD or others or group["dampening"] or group["maximize"]:
        return None
    weight_decay, nesterov = group["weight_decay"], group["nesterov"]

    def update(
        weights: Tensors, gradients: Tensors, velocities: Tensors, rates: torch.Tensor
    ) -> None:
        lr, momentum = rates.unbind()
        for name, weight in weights.items():
            slope = gradients[name]
            if weight_decay:
                slope = slope + weight_decay * weight
            if velocities:
                velocity = velocities[name].mul_(momentum).add_(slope)
                slope = slope + momentum * velocity if nesterov else velocity
            weight.sub_(lr * slope)

    return update
