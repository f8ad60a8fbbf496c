"""A training step that a GPU replays as one graph, for batches too small for Python.

Each kernel of a small network waits for Python to launch it; a CUDA graph is launched at once
(`benchmarks/reasons/gpu.md`). What Python does in a step is not repeated, so a network or loss
that counts, draws or decides in Python is found out beforehand and trained as usual.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from torchyard.core.errors import RunError
from torchyard.core.hosting.params import Loss

WARM_UP = 3  # steps before the capture, as torch's page asks for
SIZES = 2  # of batches: the usual one, and an epoch's last
# These begin with a state of zeros and can be captured; others update as usual, after the graph.
CAPTURED_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
PLAIN = (bool, int, float, complex, str, bytes, type(None))

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Graph:
    """A step of one size of batch.

    Attributes:
        replay: of the kernels.
        batch: the memory in which inputs, targets and labels are put.
        loss, right: the memory in which a replay leaves its results.
        gradients: each trained parameter with the memory of its gradient.
    """

    replay: torch.cuda.CUDAGraph
    batch: Tensors
    loss: torch.Tensor
    right: torch.Tensor
    gradients: list[tuple[nn.Parameter, torch.Tensor]]


class GraphedStep:
    """Forward, backward and, where the optimizer allows it, the update as one CUDA graph.

    It is captured at the first batch it is offered, because a checkpoint may be loaded until then.

    Args:
        network: in training mode, on a CUDA device.
        loss_function: (logits, targets) to a scalar.
        optimizer: of the network's trained weights.
        precision: of the forward pass, "float32" or "bfloat16".
        clip_norm: to which the gradients are clipped, if they are.
        required: whether what cannot be captured is an error.

    Attributes:
        updates: whether a call updates the weights; otherwise it sets their gradients, and
            `optimizer.step()` must follow.
        refusal: why nothing is captured.
        seconds: how long capturing took.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_function: Loss,
        optimizer: torch.optim.Optimizer,
        precision: str,
        *,
        clip_norm: float | None = None,
        required: bool = False,
    ) -> None:
        self._network, self._loss_function, self._optimizer = network, loss_function, optimizer
        self._clip_norm, self._required = clip_norm, required
        self._autocast = torch.autocast(
            "cuda",
            dtype=getattr(torch, precision),
            enabled=precision != "float32",
            cache_enabled=False,  # a replay must round the weights anew
        )
        groups = optimizer.param_groups
        # With dampening the first momentum buffer follows a rule of its own.
        self.updates = type(optimizer) in CAPTURED_OPTIMIZERS and not any(
            group.get("dampening") for group in groups
        )
        self._rates: list[torch.Tensor] = []
        self._settings = self._settings_now()
        self._graphs: dict[object, Graph] = {}
        self.refusal: str | None = None
        self.seconds = 0.0

    def __str__(self) -> str:
        if self.refusal or not self._graphs:
            return f"false: {self.refusal or 'no step'}"
        what = "a CUDA graph" if self.updates else "a CUDA graph, without the update"
        return f"as {what}, in {self.seconds:.1f} s"

    def accepts(self, inputs: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> bool:
        """Whether a batch can be trained so; its size is captured where that is still to be done.

        Raises:
            RunError: it cannot be captured, and that is required.
        """
        if self.refusal:
            return False
        if self.updates and self._graphs and self._settings != self._settings_now():
            # A schedule changes more than the learning rate, which alone is read at each replay.
            self.updates = False
            self._graphs.clear()
        if (key := _form(inputs, targets)) not in self._graphs and len(self._graphs) < SIZES:
            started = time.perf_counter()
            try:
                self._graphs[key] = self._captured((inputs, targets, labels))
            except (RuntimeError, NotImplementedError) as error:  # torch.AcceleratorError, too
                self.refusal = str(error).partition("\n")[0]
                self._graphs.clear()
                if self._required:
                    raise RunError(
                        f"train.compile: this cannot be a CUDA graph: {self.refusal}"
                    ) from error
            self.seconds += time.perf_counter() - started
        return key in self._graphs

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights, or set their gradients; returns the loss and how many were right."""
        graph = self._graphs[_form(inputs, targets)]
        for memory, given in zip(graph.batch, (inputs, targets, labels), strict=True):
            memory.copy_(given)
        if self.updates:
            for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
        graph.replay.replay()
        for weight, gradient in graph.gradients:
            weight.grad = gradient
        return graph.loss, graph.right

    def _captured(self, given: Tensors) -> Graph:
        """Capture a step, and leave everything as it was.

        Raises:
            RuntimeError: it cannot be captured, and why.
        """
        inputs, targets, labels = (each.clone() for each in given)
        device = inputs.device
        if self.updates:
            self._settings = self._settings_now()
            self._rates = self._rates or [
                torch.tensor(float(group["lr"]), device=device)
                for group in self._optimizer.param_groups
            ]
            for state in self._optimizer.state.values():
                if "step" in state:  # a checkpoint has it on the CPU
                    state["step"] = state["step"].to(device, torch.float32)
        with torch.random.fork_rng([device]), self._kept(), self._capturable():
            before, places = self._python_state(), self._places()
            current, side = torch.cuda.current_stream(device), _stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side), _waiting_refused():
                for _ in range(WARM_UP):
                    self._step(inputs, targets, labels)
            current.wait_stream(side)
            if before != self._python_state():
                raise RuntimeError("it counts or draws random numbers in Python")
            if places != self._places():
                raise RuntimeError("it puts other tensors in the place of its buffers")
            self._optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss, right = self._step(inputs, targets, labels)
        gradients = [
            (each, each.grad) for each in self._network.parameters() if each.grad is not None
        ]
        return Graph(graph, (inputs, targets, labels), loss, right, gradients)

    def _step(
        self, inputs: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            logits = self._network(inputs)
            loss = self._loss_function(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.updates:
            if self._clip_norm is not None:
                nn.utils.clip_grad_norm_(self._network.parameters(), self._clip_norm)
            self._optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Leave weights, buffers, the optimizer's state and what Python holds as they were."""
        state, modules, drawn = self._optimizer.state, self._modules(), np.random.get_state()
        python_state, attributes = random.getstate(), [_plain(module) for module in modules]
        buffers = [list(module.named_buffers(recurse=False)) for module in modules]
        network = [*self._network.parameters(), *self._network.buffers()]
        had = [*network, *_tensors(state)]
        values = [each.detach().clone() for each in had]
        known = {id(each) for each in had}
        try:
            yield
        except BaseException:
            for weight in [each for each in state if not known >= _identities(state[each])]:
                del state[weight]
            raise
        finally:
            random.setstate(python_state)
            np.random.set_state(drawn)
            for module, plain, named in zip(modules, attributes, buffers, strict=True):
                for name in _plain(module).keys() - plain.keys():
                    delattr(module, name)
                for name, held in [*plain.items(), *named]:
                    if getattr(module, name, None) is not held:
                        setattr(module, name, held)
            with torch.no_grad():
                for tensor, value in zip(had, values, strict=True):
                    tensor.copy_(value)
                for tensor in _tensors(state):
                    if id(tensor) not in known:
                        tensor.zero_()

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Have the optimizer read its learning rates from the GPU, and keep its steps there."""
        groups = self._optimizer.param_groups
        kept = [dict(group) for group in groups]
        if self.updates:
            for rate, group in zip(self._rates, groups, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = True
                else:  # of SGD's steps the fused one reads the rate on the GPU
                    group.update(fused=True, foreach=False)
        try:
            yield
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)

    def _settings_now(self) -> list[dict[str, Any]]:
        """What of the optimizer a graph would hold for good."""
        return [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self._optimizer.param_groups
        ]

    def _python_state(self) -> list[object]:
        """What a replay would not change, though a step may."""
        values = [_plain(module) for module in self._modules()]
        drawn = np.random.get_state(legacy=True)
        numpy_state = [each.tobytes() if isinstance(each, np.ndarray) else each for each in drawn]
        return [values, random.getstate(), numpy_state, torch.get_rng_state().tolist()]

    def _modules(self) -> list[nn.Module]:
        loss = self._loss_function
        return [*self._network.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]

    def _places(self) -> list[int]:
        return [each.data_ptr() for each in self._network.buffers()]


def _form(inputs: torch.Tensor, targets: torch.Tensor) -> object:
    return inputs.shape, inputs.dtype, targets.shape, targets.dtype


def _plain(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _identities(values: dict[str, Any]) -> set[int]:
    return {id(value) for value in values.values() if isinstance(value, torch.Tensor)}


def _tensors(state: dict[Any, Any]) -> list[torch.Tensor]:
    return [
        value
        for values in state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Have torch raise where the CPU would wait for the GPU, which a graph cannot."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
