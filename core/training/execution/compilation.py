"""A training step in one compiled function, for batches too small for Python.

LeNet at batch 4 spends half of a step between the operations. What is compiled is kept in the
cache folder, where the next run finds it in 3 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchyard.core.errors import RunError
from torchyard.core.hosting.params import Loss
from torchyard.core.training.execution.im2col import im2col_convolutions

Tensors = dict[str, torch.Tensor]
Update = Callable[[Tensors, Tensors, Tensors, torch.Tensor], None]


class CompiledStep:
    """Forward, backward and, where the optimizer is SGD, the update in one function.

    https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

    Args:
        network: in training mode.
        loss_function: (logits, targets) to a scalar.
        optimizer: of the network's trained weights.
        inputs, targets, labels: a batch; the step accepts others of their shape and type.
        gradients_used: by others than the optimizer, so that they must be set.

    Attributes:
        updates: whether a call updates the weights; otherwise it sets their gradients, and
            `optimizer.step()` must follow.
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
        labels: torch.Tensor,
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
        # Fixed here: what is compiled has momentum buffers or has none, and no guard would notice.
        self._has_momentum = self.updates and bool(optimizer.param_groups[0]["momentum"])

        def loss_of(
            trained: Tensors, rest: Tensors, inputs: torch.Tensor, targets: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.func.functional_call(network, (trained, rest), (inputs,))
            return loss_function(logits, targets), logits

        gradients_and_loss = torch.func.grad_and_value(loss_of, has_aux=True)

        def step(
            momentum_buffers: Tensors,
            rates: torch.Tensor,
            labels: torch.Tensor,
            trained: Tensors,
            *batch: Any,
        ) -> tuple[Tensors, torch.Tensor, torch.Tensor]:
            gradients, (loss, logits) = gradients_and_loss(trained, *batch)
            correct = (logits.argmax(1) == labels).sum()
            if update is None:
                return gradients, loss, correct
            update(trained, gradients, momentum_buffers, rates)
            return {}, loss, correct

        # torch knows what it compiled by the code object alone, and nothing guards it: without
        # this a second network in this process would get the first one's step.
        torch.compiler.reset()
        options: dict[str, Any] = {
            "cpp_wrapper": True,  # the kernels are called from C++, not from Python
            "layout_optimization": False,  # torch's own convolutions want channels first
            # `accepts` covers all that can change; the usual guards cost a tenth of a step.
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
            "fallback_random": True,  # dropout draws what it would draw uncompiled
        }
        self._step: Callable[..., Any] = torch.compile(
            step, fullgraph=True, dynamic=False, options=options
        )
        started = time.perf_counter()
        try:
            momentum_buffers, trained, rest = (
                {name: tensor.clone() for name, tensor in tensors.items()}
                for tensors in self._changing()
            )
            with torch.random.fork_rng([]), torch.no_grad(), im2col_convolutions():
                self._step(momentum_buffers, self._rates(), labels, trained, rest, inputs, targets)
        except Exception as error:  # the network and the loss are a plugin's, the rest is torch's
            raise RunError(
                f"train.compile: torch cannot compile this: {str(error).partition(chr(10))[0]}",
                details=str(error),
            ) from error
        self.seconds = time.perf_counter() - started
        if self.updates:
            # Without gradients nothing changes, but the schedule would miss a first step.
            optimizer.step()

    def accepts(self, inputs: torch.Tensor, _targets: torch.Tensor, _labels: torch.Tensor) -> bool:
        """Whether a batch has the shape and type that was compiled for."""
        return inputs.shape == self._shape and inputs.dtype == self._dtype

    def __str__(self) -> str:
        return f"in {self.seconds:.1f} s"

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights, or set their gradients; returns the loss and how many were right."""
        momentum_buffers, trained, rest = self._changing()
        with torch.no_grad():
            gradients, loss, correct = self._step(
                momentum_buffers, self._rates(), labels, trained, rest, inputs, targets
            )
        for name, gradient in gradients.items():
            trained[name].grad = gradient
        return loss, correct

    def _changing(self) -> tuple[Tensors, Tensors, Tensors]:
        """Momentum buffers, trained weights and the rest: what a step may change."""
        momentum_buffers = {}
        if self._has_momentum:
            # Looked up each time: loading a checkpoint replaces them.
            state = self._optimizer.state
            for name, weight in self._trained.items():
                if state[weight].get("momentum_buffer") is None:
                    state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                momentum_buffers[name] = state[weight]["momentum_buffer"]
        return momentum_buffers, self._trained, self._rest

    def _rates(self) -> torch.Tensor:
        """Learning rate and momentum, which a schedule may change."""
        group = self._optimizer.param_groups[0]
        return torch.tensor([group["lr"], group.get("momentum", 0.0)], dtype=torch.float64)


def _sgd(optimizer: torch.optim.Optimizer) -> Update | None:
    """The update of torch.optim.SGD as a function that can be compiled; None for others.

    With dampening the first momentum buffer follows a rule of its own: that is left to torch, too.
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    group, *others = optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD or others or group["dampening"] or group["maximize"]:
        return None
    weight_decay, nesterov = group["weight_decay"], group["nesterov"]

    def update(
        weights: Tensors, gradients: Tensors, momentum_buffers: Tensors, rates: torch.Tensor
    ) -> None:
        lr, momentum = rates.unbind()
        for name, weight in weights.items():
            gradient = gradients[name]
            if weight_decay:
                gradient = gradient + weight_decay * weight
            if momentum_buffers:
                buffer = momentum_buffers[name].mul_(momentum).add_(gradient)
                gradient = gradient + momentum * buffer if nesterov else buffer
            weight.sub_(lr * gradient)

    return update
