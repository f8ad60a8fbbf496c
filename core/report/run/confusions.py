"""The confusions of a run for a page that answers to the pointer: each pair, and its images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.formatting import printable
from torchyard.core.report.drawing.image_grids import drawable
from torchyard.core.report.page import small_image_uri

if TYPE_CHECKING:
    import numpy.typing as npt

    from torchyard.core.data.dataset import Samples
    from torchyard.core.data.predictions import Predictions
    from torchyard.core.evaluation.metrics import Evaluation
    from torchyard.core.report.drawing.matrix import Box

MAX_CELLS = 3000  # pairs of classes
MAX_IMAGES, OF_A_CELL = 240, 6  # a page stays below half a megabyte of them


def confusions(
    samples: Samples,
    predictions: Predictions,
    evaluation: Evaluation,
    classes: Sequence[str],
    box: Box,
) -> dict[str, Any]:
    """What the page's script is given, as JSON values.

    Args:
        samples: of the test split; only those shown are read.
        predictions: of these samples.
        evaluation: of the predictions.
        classes: the names, in the order of the class indices.
        box: where in the drawn matrix the cells are.

    Returns:
        box; classes; totals: test images of each class; cells: (true, predicted, images,
        positions in `images`), mistakes first, the most frequent first; images: addresses that
        hold the images themselves, the surest of a cell first.
    """
    confusion = evaluation.confusion
    pairs = np.argwhere(confusion)
    counts = confusion[tuple(pairs.T)]
    right = pairs[:, 0] == pairs[:, 1]
    order = np.lexsort((-counts, right))[:MAX_CELLS]
    pairs, counts = pairs[order], counts[order]
    shown = _shown(predictions, pairs) if drawable(samples) else [[] for _ in pairs]
    images: list[str] = []
    cells: list[list[Any]] = []
    for (true, guess), count, indices in zip(pairs.tolist(), counts.tolist(), shown, strict=True):
        positions = list(range(len(images), len(images) + len(indices)))
        images += [small_image_uri(samples[index]) for index in indices]
        cells.append([true, guess, count, positions])
    return {
        "box": box,
        "classes": [printable(name) for name in classes],
        "totals": confusion.sum(axis=1).tolist(),
        "cells": cells,
        "images": images,
    }


def _shown(predictions: Predictions, pairs: npt.NDArray[np.int64]) -> list[list[int]]:
    """The samples to show of each pair: one of every pair, then a second, … while they fit."""
    width = predictions.logits.shape[1]
    surest = np.argsort(-predictions.confidence, kind="stable")
    keys = (predictions.targets * width + predictions.predicted)[surest]
    by_key = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[by_key], pairs[:, 0] * width + pairs[:, 1])
    ends = np.searchsorted(keys[by_key], pairs[:, 0] * width + pairs[:, 1], side="right")
    of_pairs = [
        surest[by_key[start : min(end, start + OF_A_CELL)]].tolist()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    shown: list[list[int]] = [[] for _ in of_pairs]
    left = MAX_IMAGES
    for round_ in zip_longest(*of_pairs):
        for number, index in enumerate(round_):
            if index is not None and left:
                shown[number].append(index)
                left -= 1
    return shown
