"""The contents of a data set and the layers of a model, for `inspect` and `inspect-model`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, ValuesView
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchyard.core.config.choices import DatasetChoice
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import Split
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import DatasetParams
from torchyard.core.preparation.prepare import find_prepared
from torchyard.core.preparation.sources import described
from torchyard.core.training import network as networks
from torchyard.core.training.events import Emit
from torchyard.pipelines.worker.checks.config_check import Config


@dataclass
class Layer:
    """One row of the table of layers.

    Attributes:
        name: "layer1.0.conv1", as in the weights.
        kind: the module's class.
        output: shape for a batch of two samples; None where it is not called as a module.
        calls: how often a forward pass calls it.
        parameters: its own, not those of the modules within it.
        trained: how many of them are trained.
    """

    name: str
    kind: str
    output: list[int] | None = None
    calls: int = 0
    parameters: int = 0
    trained: int = 0


def inspect_dataset(config: Config, cache: str, emit: Emit) -> dict[str, Any]:
    """Read the arrays that `prepare` left, for what its manifest does not hold.

    Returns:
        folder, source: of the prepared data; range: the least and the greatest value of
        all splits, None of encoded images; images: per split, the samples of each class.

    Raises:
        RunError: it is not prepared.
    """
    resolved = resolve_once(config, host())
    chosen = resolved.config.dataset
    prepared = find_prepared(chosen.name, resolved.dataset, Path(cache), chosen.reading)
    if prepared is None:
        raise RunError(f"The data set '{chosen.name}' is not prepared.")
    splits = prepared.splits
    return {
        "folder": str(prepared.folder),
        "source": prepared.source,
        "range": _value_range(splits.values()),
        "images": {
            part: split.class_counts(len(prepared.classes)) for part, split in splits.items()
        },
    }


def inspect_model(
    config: Config, cache: str, shape: Sequence[int] | None, classes: int | None, emit: Emit
) -> dict[str, Any]:
    """Build a model without memory and send a batch of two through it, layer by layer.

    Args:
        shape, classes: of the samples, in place of the data set's.

    Returns:
        shape, classes: what it was built for; layers: `Layer`s as mappings, in the order in
        which the network holds them; parameters, trained, buffers: how many values;
        operations: multiplications and additions of one sample's forward pass.

    Raises:
        UserError: the data set's shape is not known yet, or the model cannot take it.
    """
    resolved = resolve_once(config, host())
    spec = _spec(resolved.config.dataset, resolved.dataset, Path(cache), shape, classes)
    recorder, chosen = _LayerRecorder(), resolved.config.model

    def attach(network: nn.Module) -> None:
        networks.freeze(network, chosen.freeze)
        recorder.attach(network)

    size = networks.dry_run(resolved.model, spec, chosen.name, attach)
    network = recorder.network
    return {
        "shape": list(spec.shape),
        "classes": spec.num_classes,
        "layers": [asdict(layer) for layer in recorder.layers.values()],
        "parameters": _values(network.parameters()),
        "trained": size.parameters,
        "buffers": _values(network.buffers()),
        "operations": size.flops,
    }


def _spec(
    chosen: DatasetChoice,
    dataset: DatasetParams,
    cache: Path,
    shape: Sequence[int] | None,
    classes: int | None,
) -> SampleSpec:
    """The samples to build for; the data set is asked only for what is not given."""
    if shape is not None and classes is not None and len(shape) != 1:  # it may be of token ids
        return SampleSpec(tuple(shape), classes)
    name, prepared = chosen.name, find_prepared(chosen.name, dataset, cache, chosen.reading)
    known = prepared.spec if prepared else described(name, dataset)
    if shape is None and known is not None:
        shape = known.shape
    if shape is None:
        raise UserError(
            f"dataset {name}: the shape of its samples is known once it is prepared: "
            f"run `torchyard inspect {name} …` first, or give --shape and --classes"
        )
    classes = classes or (known.num_classes if known else None)
    if classes is None:
        raise UserError(f"dataset {name}: its number of classes is not known yet: give --classes")
    alike = known is not None and len(known.shape) == len(shape)
    return SampleSpec(tuple(shape), classes, known.dtype if known and alike else "")


class _LayerRecorder:
    """The layers of a network, and the shapes of their outputs."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, Layer] = {}
        self.network: nn.Module = nn.Identity()

    def attach(self, network: nn.Module) -> None:
        """Record a network in place of the one before."""
        self.layers, self.network = {}, network
        for name, module in network.named_modules():
            own = list(module.parameters(recurse=False))
            # A module that only holds others is not a layer.
            if own or not any(module.children()):
                self.layers[module] = Layer(
                    name or "(whole)",
                    type(module).__name__,
                    parameters=_values(own),
                    trained=_values(p for p in own if p.requires_grad),
                )
                module.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: Any, output: Any) -> None:
        layer = self.layers[module]
        layer.calls += 1
        if layer.output is None:
            layer.output = _shape_of(output)


def _shape_of(output: Any) -> list[int] | None:
    """The shape of a tensor, or of the first one in a module's output (attention: a tuple)."""
    if isinstance(output, torch.Tensor):
        return list(output.shape)
    inner = output.values() if isinstance(output, Mapping) else output
    for part in inner if isinstance(inner, list | tuple | ValuesView) else ():
        if (shape := _shape_of(part)) is not None:
            return shape
    return None


def _values(tensors: Iterable[torch.Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _value_range(splits: Iterable[Split]) -> list[float] | None:
    """Least and greatest value of arrays; of a memory map, few pages are in memory at a time."""
    samples = [split.samples for split in splits]
    arrays = [each for each in samples if isinstance(each, np.ndarray) and len(each)]
    if not arrays:
        return None
    return [min(each.min() for each in arrays).item(), max(each.max() for each in arrays).item()]
