"""Why a mistake was made: the training samples that speak most for the wrong class.

Those are the nearest of that class in the penultimate layer: what the last layer is given decides
the logits alone, so samples that are close there are of one class to the network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.files import atomic_write
from torchyard.core.evaluation.predict import predict

if TYPE_CHECKING:
    import torch

    from torchyard.core.data.dataset import Split
    from torchyard.core.data.predictions import Predictions

FILE = "nearest.json"  # an artifact of a run
MISTAKES = 24  # the surest
CHUNK = 256  # training samples between two looks at the clock


@dataclass(frozen=True)
class Nearest:
    """The nearest training samples of the wrong class, for each of some mistakes.

    Attributes:
        layer: name of the layer whose input is compared.
        examined: how many training samples were looked at, drawn at random.
        candidates: how many there are of the wrong classes.
        samples: by the index of the test sample: indices of training samples and their cosine
            similarities, the most similar first.
    """

    layer: str
    examined: int
    candidates: int
    samples: dict[int, list[tuple[int, float]]]

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Nearest:
        """Read what `write` wrote."""
        values = json.loads(path.read_text("utf-8"))
        samples = {
            int(index): [(int(at), float(likeness)) for at, likeness in found]
            for index, found in values.pop("samples").items()
        }
        return cls(samples=samples, **values)


def surest_mistakes(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Indices of the wrongly predicted samples of the highest confidence, the highest first."""
    wrong = np.flatnonzero(predictions.predicted != predictions.targets)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:MISTAKES]


def nearest_training_samples(
    network: torch.nn.Module,
    predictions: Predictions,
    test: Split,
    train: Split,
    *,
    device: torch.device,
    count: int,
    seconds: float,
) -> Nearest | None:
    """Look for them among the training samples, as many as there is time for.

    No more than a chunk of features is in memory at once.

    Args:
        network: on `device`; takes raw samples once, without views of them.
        predictions: of the test split.
        test, train: the splits.
        count: training samples of each mistake.
        seconds: after so many no further chunk is begun.

    Returns:
        None where nothing was predicted wrongly, or no layer has weights.
    """
    import torch

    mistakes = surest_mistakes(predictions)
    guesses = predictions.predicted[mistakes]
    indices = np.arange(len(train.labels)) if train.indices is None else train.indices
    candidates = indices[np.isin(train.labels[indices], guesses)]
    if not len(mistakes) or not len(candidates):
        return None
    until = time.perf_counter() + seconds
    layers = _called(network, test, mistakes[:1], device)
    if not layers:
        return None
    name, layer = layers[-1]
    wanted = _features(network, layer, test, mistakes, device)
    best = torch.full((len(mistakes), count), -torch.inf, device=device)
    found = torch.full((len(mistakes), count), -1, device=device)
    examined = 0
    order = np.random.default_rng(0).permutation(candidates)
    for start in range(0, len(order), CHUNK):
        if start and time.perf_counter() > until:
            break
        chunk = order[start : start + CHUNK]
        likeness = wanted @ _features(network, layer, train, chunk, device).T
        of_class = torch.from_numpy(train.labels[chunk][None] == guesses[:, None]).to(device)
        likeness = likeness.masked_fill(~of_class, -torch.inf)
        places = torch.from_numpy(chunk).to(device).expand(len(mistakes), -1)
        best, chosen = torch.cat([best, likeness], dim=1).topk(count, dim=1)
        found = torch.cat([found, places], dim=1).gather(1, chosen)
        examined += len(chunk)
    samples = {
        int(mistake): [
            (place, round(value, 4))
            for place, value in zip(places, values, strict=True)
            if np.isfinite(value)
        ]
        for mistake, places, values in zip(mistakes, found.tolist(), best.tolist(), strict=True)
    }
    return Nearest(name, examined, len(candidates), samples)


def _called(
    network: torch.nn.Module, split: Split, some: npt.NDArray[np.int64], device: torch.device
) -> list[tuple[str, torch.nn.Module]]:
    """The layers with weights, by name, in the order in which they are called."""
    called: list[tuple[str, torch.nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda *_, entry=(name, module): called.append(entry))
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        predict(network, split.samples, split.labels, device=device, indices=some)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _features(
    network: torch.nn.Module,
    layer: torch.nn.Module,
    split: Split,
    indices: npt.NDArray[np.int64],
    device: torch.device,
) -> torch.Tensor:
    """What a layer is given of some samples: float32 N x D, each of length 1."""
    import torch

    with _inputs_of(layer) as given:
        predict(network, split.samples, split.labels, device=device, indices=indices)
    return torch.nn.functional.normalize(torch.cat(given), dim=1)


@contextmanager
def _inputs_of(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which each call of the layer adds its input, flat."""
    given: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        given.append(arguments[0].flatten(1).float())

    hook = layer.register_forward_pre_hook(keep)
    try:
        yield given
    finally:
        hook.remove()
