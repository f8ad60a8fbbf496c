"""What a data set holds and what a model is made of: stages that nothing is trained by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, ValuesView
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchyard.core.config.resolve import resolve
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.manager import host
from torchyard.core.preparation.prepare import find_prepared
from torchyard.core.training import network

CHUNK_BYTES = 16 * 2**20


@dataclass
class Layer:
    """One row of the table of layers.

    Attributes:
        name: "layer1.0.conv1", as in the weights.
        kind: the module's class.
        output: shape for a batch of two samples; None where it is not called as a module.
        calls: how often a forward pass calls it.
        parameters: its own, not those of the modules within it.
        trained: how many of them are.
    """

    name: str
    kind: str
    output: list[int] | None = None
    calls: int = 0
    parameters: int = 0
    trained: int = 0


def inspect_dataset(
    config: Mapping[str, Any], cache: str, emit: Callable[[Any], None]
) -> dict[str, Any]:
    """Read the arrays that `prepare` left, for what its manifest does not tell.

    Returns:
        folder, source: of the prepared data; range: the least and the greatest value of
        both splits; images: per split, the samples of each class.

    Raises:
        RunError: it is not prepared.
    """
    resolved = resolve(config, host())
    name = resolved.config.dataset.name
    found = find_prepared(name, resolved.dataset, Path(cache))
    if found is None:
        raise RunError(f"The data set '{name}' is not prepared.")
    splits = {"train": found.train, "test": found.test}
    return {
        "folder": str(found.folder),
        "source": found.source,
        "range": _value_range(splits.values()),
        "images": {part: _class_counts(split, found) for part, split in splits.items()},
    }


def inspect_model(
    config: Mapping[str, Any],
    cache: str,
    shape: Sequence[int] | None,
    classes: int | None,
    emit: Callable[[Any], None],
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
    resolved = resolve(config, host())
    spec = _spec(resolved.config.dataset.name, resolved.dataset, Path(cache), shape, classes)
    watched, chosen = _Watched(), resolved.config.model

    def begin(net: nn.Module) -> None:
        network.freeze(net, chosen.freeze)
        watched.begin(net)

    trial = network.try_out(resolved.model, spec, chosen.name, begin)
    net = watched.network
    return {
        "shape": list(spec.shape),
        "classes": spec.num_classes,
        "layers": [asdict(layer) for layer in watched.layers.values()],
        "parameters": _values(net.parameters()),
        "trained": trial.parameters,
        "buffers": _values(net.buffers()),
        "operations": trial.flops,
    }


def _spec(
    name: str, dataset: Any, cache: Path, shape: Sequence[int] | None, classes: int | None
) -> SampleSpec:
    """The samples to build for; the data set is asked only for what is not given."""
    if shape is not None and classes is not None:
        return SampleSpec(tuple(shape), classes)
    found = find_prepared(name, dataset, cache)
    known = found.spec if found else dataset.describe()
    if known is None and shape is None:
        raise UserError(
            f"dataset {name}: the shape of its samples is known once it is prepared: "
            f"`torchyard inspect {name} …` does that; or give --shape and --classes"
        )
    classes = classes or (known.num_classes if known else None)
    if classes is None:
        raise UserError(f"dataset {name}: its number of classes is not known yet: give --classes")
    return SampleSpec(known.shape if shape is None else tuple(shape), classes)


class _Watched:
    """The layers of a network and what they are seen to give."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, Layer] = {}
        self.network: nn.Module = nn.Identity()

    def begin(self, net: nn.Module) -> None:
        """Watch a network; whatever was seen of another is forgotten."""
        self.layers, self.network = {}, net
        for name, module in net.named_modules():
            own = list(module.parameters(recurse=False))
            # What holds others and nothing of its own is a frame, not a layer.
            if own or not any(module.children()):
                self.layers[module] = Layer(
                    name or "(whole)",
                    type(module).__name__,
                    parameters=_values(own),
                    trained=_values(p for p in own if p.requires_grad),
                )
                module.register_forward_hook(self._seen)

    def _seen(self, module: nn.Module, inputs: Any, output: Any) -> None:
        layer = self.layers[module]
        layer.calls += 1
        if layer.output is None:
            layer.output = _shape_of(output)


def _shape_of(output: Any) -> list[int] | None:
    """The shape of a tensor, or of the first in what a module gives (attention: a tuple)."""
    if isinstance(output, torch.Tensor):
        return list(output.shape)
    inner = output.values() if isinstance(output, Mapping) else output
    for part in inner if isinstance(inner, list | tuple | ValuesView) else ():
        if (found := _shape_of(part)) is not None:
            return found
    return None


def _values(tensors: Iterable[torch.Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _value_range(splits: Iterable[Split]) -> list[float] | None:
    """Least and greatest value, read in pieces: memory maps may be larger than memory."""
    low, high = [], []
    for split in splits:
        samples = split.samples
        rows = max(1, CHUNK_BYTES // max(1, samples[:1].nbytes))
        for start in range(0, len(samples), rows):
            chunk = samples[start : start + rows]
            low.append(chunk.min())
            high.append(chunk.max())
    return [np.min(low).item(), np.max(high).item()] if low else None


def _class_counts(split: Split, prepared: PreparedDataset) -> list[int]:
    counts: list[int] = np.bincount(split.labels, minlength=len(prepared.classes)).tolist()
    return counts
