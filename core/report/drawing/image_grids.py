"""Grids of images with their labels: a split, predictions, the most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.formatting import percent
from torchyard.core.report.drawing import style

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.artist import Artist
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

    from torchyard.core.data.dataset import Labels, Samples
    from torchyard.core.data.predictions import Predictions

IMAGES = 36  # in a grid


def test_images_figure(
    samples: Samples,
    predictions: Predictions,
    classes: Sequence[str],
    count: int = IMAGES,  # noqa: PT028
) -> Figure | None:
    """Draw a grid of test images with their true and predicted names.

    The classes have equally many images, as far as the grid has room; which images are shown
    is random but the same each time. A wrong one has a frame, a cross and both names,
    true → predicted; the percentage is the probability of the predicted class.

    Args:
        samples: uint8 N x C x H x W; only those shown are read.
        predictions: of these N samples.
        classes: the names, in the order of the class indices.
        count: how many images at most.

    Returns:
        None where the samples are not `drawable`.
    """
    if not drawable(samples):
        return None
    chosen = _choose(predictions.targets, count)
    title = f"{len(chosen):,} of {len(samples):,} test images"
    wrong = int((predictions.targets != predictions.predicted)[chosen].sum())
    note = f"✓ right: {len(chosen) - wrong}    ✗ wrong: {wrong}, true → predicted    %: confidence"
    return _predictions_grid(samples, predictions, classes, chosen, title, note)


def confident_mistakes_figure(
    samples: Samples, predictions: Predictions, classes: Sequence[str], count: int = 16
) -> Figure | None:
    """Draw the wrongly predicted test images of the highest confidence, the highest first.

    They show which classes the network confuses, and often a wrong label. The percentage is
    the probability of the wrong class. The arguments are those of `test_images_figure`.

    Returns:
        None where no prediction is wrong, or the samples are not `drawable`.
    """
    mistakes = np.flatnonzero(predictions.predicted != predictions.targets)
    if not drawable(samples) or not len(mistakes):
        return None
    surest = np.argsort(-predictions.confidence[mistakes], kind="stable")[:count]
    title = f"{len(surest):,} of {len(mistakes):,} mistakes"
    note = "the surest first    ✗ true → predicted    %: probability of the predicted class"
    return _predictions_grid(samples, predictions, classes, mistakes[surest], title, note)


def labelled_images_figure(
    samples: Samples, labels: Labels, classes: Sequence[str], title: str
) -> Figure | None:
    """Draw a grid of images with the names of their classes, of a split or of a batch.

    The classes have equally many images, as far as the grid has room; which images are shown
    is random but the same each time.

    Args:
        samples: uint8 N x C x H x W; only those shown are read.
        labels: N class indices.
        classes: the names, in the order of the class indices.
        title: what the images are.

    Returns:
        None where there is no sample, or they are not `drawable`.
    """
    if not drawable(samples) or not len(samples):
        return None
    chosen, names = _choose(labels, IMAGES), style.short_labels(classes, limit=15)
    captions = [f"{names[label]}\n" for label in labels[chosen]]
    shown = len(np.unique(labels[chosen]))
    note = f"{len(chosen):,} of {len(samples):,} images, of {shown:,} of {len(classes):,} classes"
    return _grid(samples, chosen, captions, [False] * len(chosen), title, note)


def drawable(samples: Samples) -> bool:
    """Whether the samples are images: uint8 N x C x H x W of 1 or 3 channels."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3) and samples.dtype == np.uint8


def rgb(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """C x H x W, grey or RGB, as H x W x 3."""
    return np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))


def _predictions_grid(
    samples: Samples,
    predictions: Predictions,
    classes: Sequence[str],
    chosen: npt.NDArray[np.int64],
    title: str,
    note: str,
) -> Figure:
    names = style.short_labels(classes, limit=15)
    trues, guesses = predictions.targets[chosen], predictions.predicted[chosen]
    shares = [percent(share, digits=0) for share in predictions.confidence[chosen]]
    captions = [
        (f"✓ {names[true]}\n" if true == guess else f"✗ {names[true]} →\n{names[guess]}  ") + share
        for true, guess, share in zip(trues, guesses, shares, strict=True)
    ]
    return _grid(samples, chosen, captions, trues != guesses, title, note)


def _grid(
    samples: Samples,
    chosen: npt.NDArray[np.int64],
    captions: Sequence[str],
    wrong: Sequence[bool] | npt.NDArray[np.bool_],
    title: str,
    note: str,
) -> Figure:
    """Draw the chosen images with a caption each, and a frame around the wrong ones."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    columns = min(max(len(chosen), 3), 6)
    # Pixels. The box of an image has its proportions, within limits.
    box_x = 168
    box_y = round(box_x * min(max(samples.shape[2] / samples.shape[3], 0.3), 2.0))
    step_x, step_y, margin, header = box_x + 26, box_y + 78, 30, 100
    width = columns * step_x - 26 + 2 * margin
    height = header + -(-len(chosen) // columns) * step_y
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    size = width / style.DPI, height / style.DPI
    figure = Figure(figsize=size, dpi=style.DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (index, text, framed) in enumerate(zip(chosen, captions, wrong, strict=True)):
        left, top = margin + number % columns * step_x, header + number // columns * step_y
        tile = _fit(samples[index], box_y, box_x)
        y, x = top + (box_y - tile.shape[0]) // 2, left + (box_x - tile.shape[1]) // 2
        ink, frame, colour = style.INK, 1, style.LINE
        if framed:
            ink, frame, colour = style.WRONG_INK, 6, style.WRONG
        edge = np.s_[y - frame : y + len(tile) + frame, x - frame : x + tile.shape[1] + frame]
        canvas[edge] = np.multiply(255, to_rgb(colour))
        canvas[y : y + len(tile), x : x + tile.shape[1]] = tile
        axes.text(left, top + box_y + 12, text, va="top", fontsize=7, **style.text_style(ink))
    # All images are one picture: an axes for each of them would take many times as long.
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.add_artist(_pixels(canvas))
    style.add_title(figure, title, note)
    return figure


def _pixels(canvas: npt.NDArray[np.uint8]) -> Artist:
    """An image of H x W x 3 that fills its figure, one pixel of it per pixel of the figure.

    `Figure.figimage` would resample it in floating point first, twice as slow.
    """
    from matplotlib.artist import Artist

    class Pixels(Artist):
        zorder = 0

        def draw(self, renderer: RendererBase) -> None:
            opaque = np.full((*canvas.shape[:2], 1), 255, dtype=np.uint8)
            renderer.draw_image(renderer.new_gc(), 0, 0, np.dstack([canvas[::-1], opaque[::-1]]))

    return Pixels()


def _choose(targets: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of up to `count` samples, sorted by class, about equally many of each."""
    import pandas as pd

    order = np.random.default_rng(0).permutation(len(targets))
    # The first sample of every class, in a random order, then the second of every class, …
    rank = pd.Series(order).groupby(targets[order]).cumcount().to_numpy()
    chosen = order[np.argsort(rank, kind="stable")[:count]]
    return chosen[np.argsort(targets[chosen], kind="stable")]


def _fit(image: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Scale C x H x W to RGB of at most this size: up by a whole factor, down by averaging."""
    from PIL import Image

    pixels = rgb(image)
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    scale = float(int(scale)) if scale >= 1 else scale
    shape = max(1, round(scale * pixels.shape[1])), max(1, round(scale * pixels.shape[0]))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(shape, how))
