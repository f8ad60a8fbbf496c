"""Dry runs: a model built without memory, and its answer to a batch of two."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.containment import PluginExit, contained
from torchyard.core.hosting.params import ModelParams
from torchyard.core.training.network.network import model_input

T = TypeVar("T")


@dataclass(frozen=True)
class DryRun:
    """What a dry run finds out about a model.

    Attributes:
        parameters: how many are trained.
        flops: multiplications and additions of one sample's forward pass.
        all_parameters: how many there are, frozen ones included.
    """

    parameters: int
    flops: int
    all_parameters: int = 0


def dry_run(
    model: ModelParams,
    spec: SampleSpec,
    name: str,
    on_built: Callable[[nn.Module], None] = lambda network: None,
) -> DryRun:
    """Build a model without memory and send a batch of two through it.

    Costs no arithmetic: torch's meta device computes shapes alone. A model that needs
    the values of its weights to be built or run is run on the CPU instead.

    Args:
        model: what builds it.
        spec: of the samples; of an unknown number of classes there are two.
        name: what messages call the model.
        on_built: called with the network before the batch; again, where it is run on the CPU.

    Raises:
        UserError: the model cannot take such samples, or does not return N x classes logits.
    """
    classes = spec.num_classes or 2
    shape = dimensions(spec.shape) + " integers" * (spec.dtype == "int64")
    counter = FlopCounterMode(display=False)

    def run(device: str) -> tuple[nn.Module, torch.Tensor]:
        network = build_on(device, model, spec)
        on_built(network)
        with torch.device(device), counter:
            samples = torch.zeros(2, *spec.shape, dtype=model_input(spec, "statistics"))
            return network, network(samples)

    try:
        with contained():
            network, logits = without_memory(run)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model: '{name}' {refusal(error, f'samples of {shape}')}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        output = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"model: '{name}' returns {output} for 2 samples of {shape}, not logits of "
            f"(2, {classes}): the data has {classes} classes"
        )
    weights = [(math.prod(each.shape), each.requires_grad) for each in network.parameters()]
    trained = sum(count for count, is_trained in weights if is_trained)
    return DryRun(trained, counter.get_total_flops() // 2, sum(count for count, _ in weights))


def build_on(device: str, model: ModelParams, spec: SampleSpec) -> nn.Module:
    """Build a model on the CPU, or on torch's meta device, where weights take no memory.

    Raises:
        NoModuleError: what is built is none.
    """
    with _parameters_without_memory() if device == "meta" else contextlib.nullcontext():
        return build_model(model, spec).to(device)


def build_model(model: ModelParams, spec: SampleSpec) -> nn.Module:
    """Build a model; one with lazy layers is run once, so that they find their widths.

    Averaged weights, DistributedDataParallel and compiling need them before the first batch.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.modules.lazy.LazyModuleMixin.html

    Raises:
        NoModuleError: what is built is none.
    """
    network: object = model.build(spec.shape, spec.num_classes or 2)
    if not isinstance(network, nn.Module):
        raise NoModuleError(f"builds a {type(network).__name__}, not a torch.nn.Module")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        modes = {module: module.training for module in network.modules()}
        with torch.no_grad():  # in evaluation's form: statistics stay as they are
            network.eval()(torch.zeros(2, *spec.shape, dtype=model_input(spec, "statistics")))
        for module, training in modes.items():
            module.training = training
    return network


def without_memory(run: Callable[[str], T]) -> T:
    """Call it for the meta device, and for the CPU where it needs values, which that has not."""
    try:
        return run("meta")
    except Exception as error:
        if "meta" not in str(error):
            raise
        return run("cpu")


class NoModuleError(TypeError):
    """A model builds something else than a network."""


# These are never raised because of a shape.
_NOT_OF_A_SHAPE = (ImportError, NameError, AttributeError, SyntaxError, OSError, PluginExit)


def refusal(error: Exception, samples: str) -> str:
    """What a model did with samples, in a line, by what it raised."""
    reason = str(error).partition("\n")[0]
    if isinstance(error, NoModuleError):
        return reason
    if not reason or not isinstance(error, (ValueError, RuntimeError)):
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")
    return (
        f"raises {reason}"
        if isinstance(error, _NOT_OF_A_SHAPE)
        else f"cannot take {samples}: {reason}"
    )


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Move the parameters that are made within to the meta device, and nothing else.

    Many models compute their widths or drop rates with small tensors, whose values that device
    does not have.
    """

    def forget(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if isinstance(parameter, nn.UninitializedParameter):
            raise NotImplementedError("a lazy parameter cannot go to the meta device")
        if parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    registration = register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]
    try:
        yield
    finally:
        registration.remove()
