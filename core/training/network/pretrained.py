"""Weights that training begins with: which of them fit a model, and what stays new.

A tensor is taken where the model has one of its name and shape. A prefix that programs add,
`module.` or `model.`, is found by trying: the one with which most fits. A file of the same network
under other names is taken in its order, if every shape agrees. Of a first convolution
for another number of colours the weights are summed or shared, so that grey images give what they
would give as RGB.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from torchyard.core.config.choices import Normalization
from torchyard.core.config.weights import WeightsSource, about_file
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.params import ModelParams, Pretrained
from torchyard.core.training.network.network import Network, Normalize
from torchyard.core.training.network.published import fetch
from torchyard.core.training.network.weights_file import Tensors, read_weights

LEAST_SHARE = 0.5  # of a model's parameters; weights that fit fewer are another model's
MOST_NAMED = 4  # tensors in a message
NORMALIZATION = ("normalize.factor", "normalize.shift")  # in files of torchyard's
TEMPERATURE = "temperature"  # of the probabilities: it is fitted anew
COUNTER = "num_batches_tracked"  # of a batch norm: files of other programs leave it out


@dataclass
class Fit:
    """How weights fit a model.

    Attributes:
        taken: tensors by the model's names.
        new: the model's tensors that stay as they are: name, and how it differs.
        unused: tensors of the file that are not taken.
        adapted: what was done with the first convolution.
        renamed: a name of the model's and the file's, where they were matched by their order.
    """

    taken: Tensors = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    adapted: str = ""
    renamed: tuple[str, str] | None = None


@dataclass(frozen=True)
class StartingWeights:
    """The tensors that `model.weights` names.

    Attributes:
        source: as the configuration names them.
        tensors: of the file.
        file: that was read.
        published: what is known of published weights.
        classes: that they tell apart, where that is known.
    """

    source: str
    tensors: Tensors
    file: Path
    published: Pretrained | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def open(cls, source: str, file: Path | None, model: ModelParams) -> StartingWeights:
        """Read them.

        Args:
            source: as the configuration names them.
            file: None for weights that the model's plugin knows of.
            model: the plugin.

        Raises:
            UserError: there are none of that name, or the file is missing or no state dict.
        """
        published = None
        if file is None:
            published = fetch(model, source)
            file = published.file
        named = source if file.name in source else f"{source} ({file.name})"
        tensors = read_weights(file, source)
        if any(each.endswith(NORMALIZATION) for each in tensors):
            tensors.pop(TEMPERATURE, None)
        classes: tuple[str, ...] = ()
        recorded = WeightsSource.of(source) is WeightsSource.RECORDED
        if recorded and (beside := about_file(file)).is_file():
            about = json.loads(beside.read_text("utf-8"))
            named, classes = source, tuple(about["classes"])
            if about["name"] not in source:  # which is `latest`, or an id
                named = f"{source}, {about['name']}"
        return cls(named, tensors, file, published, classes)

    def fit(self, model: nn.Module, name: str) -> Fit:
        """Compare them with a model, also one on torch's meta device.

        Args:
            name: of the model, for messages.

        Raises:
            UserError: they fit hardly at all.
        """
        fit, wanted = Fit(), model.state_dict()
        names = _aligned(self.tensors, wanted)
        if _share(names, self.tensors, wanted) < LEAST_SHARE and (
            ordered := _in_order(self.tensors, wanted)
        ):
            names, fit.renamed = ordered, next(iter(ordered.items()))
        first = next((key for key, tensor in wanted.items() if tensor.ndim >= 3), "")
        for key, tensor in wanted.items():
            found = self.tensors.get(names.get(key, ""))
            if found is None:
                if not key.endswith(COUNTER):
                    fit.new[key] = f"{_size(tensor)}, not in the file"
            elif found.shape == tensor.shape:
                fit.taken[key] = found
            elif key == first and (adapted := _other_colours(found, tensor)) is not None:
                fit.taken[key] = adapted
                fit.adapted = f"{key} made of {found.shape[1]} input channels for {tensor.shape[1]}"
            else:
                fit.new[key] = f"{_size(tensor)}, was {_size(found)}"
        used = set(names.values())
        used |= {each for each in self.tensors if each.endswith(NORMALIZATION)}
        fit.unused = [each for each in self.tensors if each not in used]
        total = sum(weight.numel() for weight in model.parameters())
        share = sum(w.numel() for n, w in model.named_parameters() if n in fit.taken) / total
        if share < LEAST_SHARE:
            raise UserError(
                f"model.weights: {self.source} fits {len(fit.taken)} of {len(wanted)} tensors of "
                f"'{name}', {share:.0%} of its parameters, and half of them must fit: "
                f"{_differences(fit, self.tensors)}"
            )
        return fit

    def normalization(self, spec: SampleSpec) -> Normalization | None:
        """What the images were normalized with that they were trained on, where that is known."""
        known = self.published
        if known is None or not known.mean or spec.dtype != "uint8":
            return None
        mean, std = known.mean, known.std
        if len(mean) not in (1, spec.shape[0]):  # RGB's, of grey images: their average
            mean, std = ((math.fsum(v) / len(v),) * spec.shape[0] for v in (mean, std))
        return mean, std

    def apply(
        self,
        network: Network,
        name: str,
        spec: SampleSpec,
        asked: Normalization,
        classes: Sequence[str] = (),
    ) -> str:
        """Load them into a network; what was done, in a line.

        Args:
            network: normalized as `normalization` says where `asked` is "auto".
            name: of the model, for messages.
            spec: of the samples.
            asked: `dataset.normalize`.
            classes: of the data. A last layer that tells others apart is not taken; of one with
                the same in another order the rows are.

        Raises:
            UserError: they fit hardly at all.
        """
        fit = self.fit(network.model, name)
        if self.classes and classes:
            _fit_head(fit, network.model, self.classes, classes)
        network.model.load_state_dict(fit.taken, strict=False)
        _make_new_head_small(network.model, fit.new)
        parts = [
            f"{len(fit.taken)} of {len(network.model.state_dict())} tensors from {self.source}"
        ]
        if fit.new:
            parts.append(f"new: {_some([f'{key} ({how})' for key, how in fit.new.items()])}")
        if fit.renamed:
            ours, theirs = fit.renamed
            parts.append(
                f"taken in their order, since the file names them otherwise: {ours} is its {theirs}"
            )
        if fit.adapted:
            parts.append(fit.adapted)
        if fit.unused:
            parts.append(f"left in the file: {_some(fit.unused)}")
        known = self.published
        if asked == "auto" and isinstance(network.normalize, Normalize):
            own = self._normalized_as_in_file(network.normalize)
            if own or (known is not None and known.mean):
                parts.append("normalized as for them")
            elif spec.dtype == "uint8":
                parts.append(
                    "normalized by the statistics of these data: what they were trained with is "
                    "not known (dataset.normalize)"
                )
        elif known is not None and known.mean:
            parts.append("dataset.normalize is as it is set, not as for them")
        side = known.image_size if known else None
        if side and side not in (size := spec.shape[1:]):
            parts.append(f"they are for images of {side}x{side}, these are {dimensions(size)}")
        return "; ".join(parts)

    def _normalized_as_in_file(self, layer: Normalize) -> bool:
        """Take over the normalization that a file of torchyard's has; whether it has one."""
        found = {}
        for name in NORMALIZATION:
            own: torch.Tensor = getattr(layer, name.rpartition(".")[2])
            tensor = next((self.tensors[k] for k in self.tensors if k.endswith(name)), None)
            if tensor is None or tensor.ndim != own.ndim or tensor.shape[1] not in (1, len(own[0])):
                return False
            found[name.rpartition(".")[2]] = tensor.expand_as(own)
        layer.load_state_dict(found)
        return True


def _aligned(found: Tensors, wanted: Tensors) -> dict[str, str]:
    """The name in the file for each of the model's that it has, by the prefixes that fit most."""
    best: dict[str, str] = {}
    most = (-1, -1)
    for strip in _prefixes(found):
        for add in _prefixes(wanted):
            names = {add + key[len(strip) :]: key for key in found if key.startswith(strip)}
            both = [(key, names[key]) for key in wanted if key in names]
            same = sum(found[theirs].shape == wanted[ours].shape for ours, theirs in both)
            if (same, len(both)) > most:
                most, best = (same, len(both)), dict(both)
    return best


def _share(names: dict[str, str], found: Tensors, wanted: Tensors) -> float:
    """Of all the model's values, the share in tensors whose shapes agree."""
    agreeing = (key for key, other in names.items() if found[other].shape == wanted[key].shape)
    return sum(wanted[key].numel() for key in agreeing) / sum(w.numel() for w in wanted.values())


def _in_order(found: Tensors, wanted: Tensors) -> dict[str, str]:
    """The name in the file for each of the model's, by their places; {} if they do not all agree.

    They agree where kind (`weight`, `running_mean`) and shape do; of the last layer, which may be
    for other classes, the kind.
    """
    ours = [*wanted]
    theirs = [key for key in found if not key.endswith(NORMALIZATION)]
    if len(ours) != len(theirs):
        ours = [key for key in ours if not key.endswith(COUNTER)]
        theirs = [key for key in theirs if not key.endswith(COUNTER)]
    if len(ours) != len(theirs) or not ours:
        return {}
    head = ours[-1].rpartition(".")[0]
    agree = all(
        own.rpartition(".")[2] == other.rpartition(".")[2]
        and (wanted[own].shape == found[other].shape or own.rpartition(".")[0] == head)
        for own, other in zip(ours, theirs, strict=True)
    )
    return dict(zip(ours, theirs, strict=True)) if agree else {}


def _fit_head(fit: Fit, model: nn.Module, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Leave the last layer new where it was for other classes; put its rows into our order."""
    if list(theirs) == list(ours):
        return
    heads = [
        layer
        for layer, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and weight.ndim >= 2
        and len(weight) == len(ours)
    ]
    same = sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours)
    for key in [each for each in fit.taken if heads and each.startswith(f"{heads[-1]}.")]:
        if same:
            fit.taken[key] = fit.taken[key][[theirs.index(name) for name in ours]]
        else:
            del fit.taken[key]
            fit.new[key] = f"for the classes {_some(ours)}, was for {_some(theirs)}"


@torch.no_grad()
def _make_new_head_small(model: nn.Module, new: Iterable[str]) -> None:
    """Scale a new last layer down to the weights that `nn.Linear` begins with, if they are larger.

    Some models draw it for the number of outputs (EfficientNet: 1/√K). Of few classes the first
    logits are then so large that hundreds of steps are spent on making them smaller.
    """
    linear = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
    name, head = linear[-1] if linear else ("", None)
    if head is not None and f"{name}.weight" in {*new} and head.weight.any():
        bound = 1 / math.sqrt(head.in_features)
        head.weight.mul_(min(1.0, bound / float(head.weight.abs().max())))


def _prefixes(names: Iterable[str]) -> list[str]:
    """The beginnings that half of the names or more have, the shortest, "", first."""
    beginnings: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1]
        beginnings.update({".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1)})
    half = len(list(names)) / 2
    return ["", *sorted((each for each, count in beginnings.items() if count >= half), key=len)]


def _other_colours(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """A first convolution's weights for another number of colours; None where that makes no sense.

    https://huggingface.co/docs/timm/models: summed for grey images, and of grey ones a third each.
    """
    ours, theirs = list(wanted.shape), list(found.shape)
    if len(ours) != len(theirs) or ours[:1] + ours[2:] != theirs[:1] + theirs[2:]:
        return None
    if ours[1] == 1:
        return found.sum(1, keepdim=True)
    if theirs[1] == 1:
        return (found / ours[1]).expand(ours)
    return None


def _differences(fit: Fit, tensors: Tensors) -> str:
    described = []
    for key, how in list(fit.new.items())[:MOST_NAMED]:
        near = difflib.get_close_matches(key, tensors, n=1) if "not in" in how else []
        nearest = f" (nearest: {near[0]}, {_size(tensors[near[0]])})" if near else ""
        described.append(f"{key}: {how}{nearest}")
    rest = len(fit.new) - len(described)
    return "; ".join(described) + (f"; and {rest} more" if rest else "")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _size(tensor: torch.Tensor) -> str:
    return dimensions(tuple(tensor.shape)) or "a number"
