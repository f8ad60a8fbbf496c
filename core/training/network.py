"""The network that is trained, evaluated and served: normalization first, then the model."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import atomic_write
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import RunError, UserError, suggestion
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import PluginExit, contained
from torchyard.core.hosting.params import ModelParams

T = TypeVar("T")


class Normalize(nn.Module):
    """(x - mean) / std as a layer, from the samples as they are stored.

    Args:
        mean, std: one value, or one per channel or component; of images on the scale 0 to 1.
        shape: one sample, (C, H, W), (D,) or (C, L).
        scale: what a stored value is divided by first: 255 for uint8 images, 1 for floats.

    Attributes:
        order: the memory format of the output.
    """

    order = torch.contiguous_format
    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], shape: tuple[int, ...], scale: float
    ) -> None:
        super().__init__()
        view = (1, -1) + (1,) * (len(shape) - 1)
        means = torch.tensor(mean, dtype=torch.float64).view(view)
        stds = torch.tensor(std, dtype=torch.float64).view(view)
        # A constant channel is centred only: dividing by its deviation would be by zero.
        stds = torch.where(stds == 0, 1.0, stds)
        self.register_buffer("factor", (1 / (scale * stds)).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Raw samples N x shape, of any type, to normalized float32 of that shape."""
        # Two passes: `addcmul` is not vectorized for these shapes, which takes longer.
        normalized = samples.float().mul(self.factor).add_(self.shift)
        return normalized.contiguous(memory_format=self.order)


class Network(nn.Module):
    """Normalization, then the model: raw samples N x shape to logits N x classes.

    Args:
        model: normalized float32 N x shape, or int64 token ids, to logits.
        data: the data set, whose statistics are used.
        normalize: "statistics", or (mean, std) for all channels alike. "statistics" leaves token
            ids as they are.
    """

    def __init__(
        self, model: nn.Module, data: PreparedDataset, normalize: str | tuple[float, float]
    ) -> None:
        super().__init__()
        mean, std = data.mean, data.std
        if not isinstance(normalize, str):
            mean, std = (normalize[0],), (normalize[1],)
        scale = 255.0 if data.dtype == "uint8" else 1.0
        self.normalize: nn.Module = nn.Identity()
        if model_input(data.spec, normalize) == torch.float32:
            self.normalize = Normalize(mean, std, data.shape, scale)
        self.model = model

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Raw samples to logits."""
        logits: torch.Tensor = self.model(self.normalize(samples))
        return logits


def model_input(spec: SampleSpec, normalize: str | tuple[float, float]) -> torch.dtype:
    """The type of the samples that a model is given: int64 for token ids, else float32."""
    kept = spec.dtype == "int64" and isinstance(normalize, str)
    return torch.int64 if kept else torch.float32


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


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parameters from training, by their names ("conv1.weight") or their layers'.

    Patterns as in file names: "conv*" takes every layer that begins so. Buffers, such as batch
    norm's running statistics, still change.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    weights = dict(model.named_parameters())
    problems = []
    for pattern in patterns:
        chosen = [n for n in weights if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]
        for name in chosen:
            weights[name].requires_grad_(False)
        if not chosen:
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in weights))
            problems.append(
                f"model.freeze: no parameter matches '{pattern}'.{suggestion(pattern, layers)}"
            )
    if patterns and not any(weight.requires_grad for weight in weights.values()):
        problems.append("model.freeze: nothing is left to train")
    if problems:
        raise UserError(problems)


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
    """Build a model on the CPU, or on torch's meta device, where weights take no memory."""
    with _parameters_without_memory() if device == "meta" else contextlib.nullcontext():
        return model.build(spec.shape, spec.num_classes or 2).to(device)


def without_memory(run: Callable[[str], T]) -> T:
    """Call it for the meta device, and for the CPU where it needs values, which that has not."""
    try:
        return run("meta")
    except Exception as error:
        if "meta" not in str(error):
            raise
        return run("cpu")


# These are never raised because of a shape.
_NOT_OF_A_SHAPE = (ImportError, NameError, AttributeError, SyntaxError, OSError, PluginExit)


def refusal(error: Exception, samples: str) -> str:
    """What a model did with samples, in a line, by what it raised."""
    reason = str(error).partition("\n")[0]
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


def weights_digest(network: nn.Module, *, by_name: bool = False) -> str:
    """sha256 of every parameter and buffer, under the names they have and in their order.

    An exported network has another order: `by_name` takes them in that of their names.
    """
    digest = hashlib.sha256()
    weights = network.state_dict()
    for name, tensor in sorted(weights.items()) if by_name else weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Flat first: a tensor of no dimension (batch norm's counter) has no bytes to view.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class NotExportableError(RunError):
    """A network whose computation torch.export cannot write down."""


def export(network: nn.Module, data: PreparedDataset, path: Path) -> str:
    """Write the network as a pt2 archive that takes any number of raw samples.

    Args:
        network: on the CPU.

    Returns:
        The `weights_digest` by name of the network that is loaded from it.

    Raises:
        NotExportableError: torch.export cannot trace the model.
    """
    # Two rows: torch.export takes a dimension of 1 for a constant.
    samples = torch.zeros(2, *data.shape, dtype=getattr(torch, data.dtype))
    program = traced(network, samples)
    with atomic_write(path) as file:
        torch.export.save(program, file)
    return weights_digest(program.module(), by_name=True)


def traced(network: nn.Module, samples: torch.Tensor) -> torch.export.ExportedProgram:
    """The network's evaluation for any number of raw samples, as torch.export writes it down.

    https://docs.pytorch.org/docs/stable/export.html

    Args:
        samples: two or more, on the network's device.

    Raises:
        NotExportableError: torch.export cannot trace the model.
    """
    network = copy.deepcopy(network).eval()
    try:
        return torch.export.export(
            network, (samples,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:
        raise NotExportableError(
            f"The model cannot be exported by torch.export: {str(error).partition(chr(10))[0]}",
            details=str(error),
        ) from error
