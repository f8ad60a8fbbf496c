"""Predictions and what they add up to. `predict` needs torch, everything after it does not."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core.errors import RunError
from core.file_rows import readable
from core.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from core.dataset import Labels, Samples

# What the samples of one batch take as float32. Activations grow with the sample, so a limit in
# bytes keeps memory the same for images of 8 pixels and of 500. On a CPU larger batches are slower
# (LeNet on CIFAR-10 takes twice as long from 700 images on: fresh memory for every activation).
CPU_BATCH_BYTES = 4 * 2**20
BATCH_BYTES = 32 * 2**20

_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*_[]|~$!#"}}
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network said of each sample, in the order of the split.

    Attributes:
        logits: float32 N x K, before the softmax.
        targets: int64 N, the true class indices.
    """

    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.targets.shape != self.logits.shape[:1]:
            shapes = f"{self.logits.shape} and {self.targets.shape}"
            raise ValueError(f"logits are N x K and targets N, not {shapes}")

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """int64 N: the class with the greatest logit, the first of equals."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """float32 N x K: the softmax of the logits; every row sums to one."""
        exponentials = _exponentials(self.logits)
        exponentials /= exponentials.sum(axis=1, keepdims=True)
        return exponentials

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """float32 N: the probability of the predicted class."""
        return np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)[:, 0]

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all; RunError if the disk does not take it."""
        try:
            with whole_file(path) as file:
                np.savez(file, allow_pickle=False, logits=self.logits, targets=self.targets)
        except OSError as error:
            raise RunError(f"The predictions cannot be written to {path}: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote, executing nothing; RunError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["logits"], arrays["targets"])
        # A bare array, which np.load also reads, is no context manager: TypeError.
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
            raise RunError(f"{path} holds no predictions: {error}") from error


def predict(
    network: torch.nn.Module,
    samples: Samples | torch.Tensor,
    labels: Labels | torch.Tensor,
    *,
    device: torch.device | str,
    indices: npt.NDArray[np.int64] | None = None,
    batch_size: int | None = None,
) -> Predictions:
    """Run a network once over all samples, or those at `indices`, in evaluation mode.

    Everything is computed in float32, whatever precision the training used: what is
    evaluated is what is served. Every module's mode is put back afterwards.

    Args:
        network: on `device`; takes the raw samples, its first layer normalizes.
        samples: uint8 N x C x H x W or float32 N x D, an array or memory map, of which one
            batch at a time is sent to the device, or a tensor that is there already.
        labels: N class indices.
        device: where the network is.
        indices: of the samples to take, and of their labels; None: all.
        batch_size: None takes as many as make 4 MiB on a CPU, 32 MiB elsewhere.

    Raises:
        RunError: there are no samples, the output is not N x K, or it is not finite.
    """
    import torch

    rows = samples if isinstance(samples, torch.Tensor) else readable(samples)
    count = len(rows if indices is None else indices)
    if count == 0:
        raise RunError("There is no sample to evaluate.")
    device = torch.device(device)
    if batch_size is None:
        budget = CPU_BATCH_BYTES if device.type == "cpu" else BATCH_BYTES
        batch_size = max(1, budget // (4 * math.prod(samples.shape[1:])))
    # By default cuDNN rounds convolutions to TF32; what is served on a CPU is not rounded.
    cudnn: Any = torch.backends.cudnn
    rounding, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "ieee"
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    logits = np.empty((0, 0), dtype=np.float32)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for start in range(0, count, batch_size):
                chosen = slice(start, start + batch_size)
                batch = rows[chosen if indices is None else indices[chosen]]
                if isinstance(batch, np.ndarray):
                    # torch shares the memory of writable arrays only.
                    batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
                output = network(batch.to(device))
                if output.ndim != 2 or len(output) != len(batch):
                    shape = tuple(output.shape)
                    raise RunError(f"The network makes {shape} of {len(batch)} samples, not N x K.")
                if start == 0:
                    logits = np.empty((count, output.shape[1]), dtype=np.float32)
                logits[start : start + len(output)] = output.float().cpu().numpy()
    finally:
        cudnn.conv.fp32_precision = rounding
        for module, training in modes:
            module.training = training

    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise RunError(
            f"The network's output is NaN or infinite for {len(broken):,} of {count:,} "
            f"samples, first for number {broken[0]:,}: its weights are no longer usable."
        )
    targets = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    targets = targets if indices is None else targets[indices]
    return Predictions(logits, targets.astype(np.int64))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the predictions add up to.

    Attributes:
        accuracy: the share of samples predicted rightly, 0 to 1.
        cross_entropy: the mean of -log(probability of the true class), in nats.
        confusion: int64 K x K, samples by true class (row) and predicted class (column).
        per_class: one row a class, in the order of the class indices, with the columns
            class: its name; images: its test samples; correct: those predicted rightly;
            accuracy: correct / images, which is the recall, NaN without images;
            precision: correct / times predicted, NaN if never predicted;
            f1: 2 correct / (images + times predicted), NaN without either.
    """

    accuracy: float
    cross_entropy: float
    confusion: npt.NDArray[np.int64]
    per_class: pd.DataFrame

    @property
    def images(self) -> int:
        """How many samples were evaluated."""
        return int(self.confusion.sum())

    @property
    def worst_class(self) -> str:
        """The class of the least accuracy, of those that have test images; the first of equals."""
        return str(self.per_class["class"].iloc[int(self.per_class["accuracy"].argmin())])

    def most_confused(self, count: int = 5) -> list[tuple[int, int, int]]:
        """(true class, predicted class, samples), the most frequent mistakes first."""
        mistakes = self.confusion.copy()
        np.fill_diagonal(mistakes, 0)
        order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = [divmod(int(index), len(mistakes)) for index in order]
        return [(*pair, int(mistakes[pair])) for pair in pairs if mistakes[pair]]

    def per_class_csv(self) -> str:
        """The table in full precision; an undefined value is an empty field."""
        # This line end makes Python quote a name that has a carriage return, too.
        return self.per_class.to_csv(index=False, lineterminator="\r\n")

    def per_class_json(self) -> str:
        """The table as a list of objects in full precision; an undefined value is null."""
        rows = self.per_class.to_dict("records")
        clean = [{key: None if v != v else v for key, v in row.items()} for row in rows]
        return json.dumps(clean, ensure_ascii=False, allow_nan=False, indent=1)

    def per_class_markdown(self, weakest_first: bool = False) -> str:
        """The table for reading, shares in percent; an undefined value is a dash."""
        table = self.per_class
        if weakest_first:
            table = table.sort_values("accuracy", kind="stable", na_position="last")
        lines = ["| class | images | correct | accuracy | precision | F1 |"]
        lines.append("| :--- |" + " ---: |" * 5)
        for name, images, correct, *shares in table.itertuples(index=False, name=None):
            numbers = [f"{images:,}", f"{correct:,}", *map(percent, shares)]
            lines.append(f"| {escape_markdown(name)} | {' | '.join(numbers)} |")
        return "\n".join(lines) + "\n"


def evaluate(predictions: Predictions, classes: Sequence[str]) -> Evaluation:
    """Count what was right, class by class.

    Args:
        predictions: of N samples, in K classes.
        classes: the K names, in the order of the class indices.

    Raises:
        RunError: there are more or fewer outputs than names, or a target is out of range.
    """
    import pandas as pd

    logits, targets = predictions.logits, predictions.targets
    width = len(classes)
    if logits.shape[1] != width:
        raise RunError(f"The network has {logits.shape[1]} outputs for {width} classes.")
    if len(targets) and (targets.min() < 0 or targets.max() >= width):
        found = f"{targets.min()} to {targets.max()}"
        raise RunError(f"The test labels go from {found}; {width} classes end at {width - 1}.")
    flat = np.bincount(targets * width + predictions.predicted, minlength=width * width)
    confusion = flat.astype(np.int64, copy=False).reshape(width, width)

    true_logit = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    # float64 only from the sum on: N x K is large, N is not.
    totals = _exponentials(logits).sum(axis=1, dtype=np.float64)
    losses = np.log(totals) + (logits.max(axis=1).astype(np.float64) - true_logit)
    table = pd.DataFrame({"class": pd.Series(list(classes), dtype=object)})
    table["images"] = confusion.sum(axis=1)
    table["correct"] = confusion.diagonal()
    guesses = confusion.sum(axis=0)
    # pandas makes 0 / 0 NaN without a word, and nothing else here is divided by 0.
    table["accuracy"] = table["correct"] / table["images"]
    table["precision"] = table["correct"] / guesses
    table["f1"] = 2 * table["correct"] / (table["images"] + guesses)
    count = len(targets) or math.nan
    accuracy = float(confusion.trace() / count)
    return Evaluation(accuracy, float(losses.sum() / count), confusion, table)


def percent(share: float) -> str:
    """`0.5312` → `53.1 %`; NaN, which nothing can be said about, is a dash."""
    return "–" if share != share else f"{100 * share:.1f} %"


def escape_markdown(text: str) -> str:
    """Text that shows as it is in Markdown, a table cell included; line breaks are spaces."""
    return " ".join(text.split()).translate(_MARKDOWN)


def _exponentials(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # Shifted so that the greatest exponent of a row is 0: no logit is too large.
    shifted: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    return shifted
