"""Predictions, noise images, and what is in a figure: for the tests of figures and reports."""

from __future__ import annotations

import io
import warnings

import numpy as np
from matplotlib.text import Text
from PIL import Image

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report.drawing.matrix import confusion_matrix_figure

ODD = [
    "$a_b$",
    "a_b^c",
    "x\ny",
    "a|b",
    "<script>alert(1)</script>",
    "猫",
    "犬 dog",
    "$",
    "",
    "\x07",
]


WRONG = (213, 94, 0)


def guesses(predicted, targets, width: int) -> Predictions:
    logits = 5 * np.eye(width, dtype=np.float32)[np.asarray(predicted)]
    return Predictions(logits, np.asarray(targets, np.int64))


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, *shape), dtype=np.uint8)


def drawn(figure) -> Image.Image:
    """The figure as a picture; a warning on the way is an error."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def captions(figure) -> list[str]:
    """The texts under the images: all of two lines."""
    return [text for text in texts(figure) if "\n" in text]


def matrix(predicted, targets, classes):
    return confusion_matrix_figure(
        evaluate(guesses(predicted, targets, len(classes)), classes), classes
    )
