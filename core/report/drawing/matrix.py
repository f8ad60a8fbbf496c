"""The confusion matrix, as a picture and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.report.drawing import style
from torchyard.core.report.drawing.style import INK, LINE, MUTED, RIGHT, WRONG, text_style

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchyard.core.evaluation.metrics import Evaluation

NUMBERED = 20  # classes up to which each cell has its number of images
DRAWN = 200  # cells along a side; of more classes several share one, which shows the worst of them
# The opacity of the least mistake, with its number in it and without: seen also in the dark.
FAINT, FAINTEST = 0.14, 0.3
PAGE_SIDE, PAGE_NAMES = 4.0, 25  # inches, and how many names there is room for

# Left, top, width and height of the cells, as shares of the figure's.
Box = tuple[float, float, float, float]


def confusion_matrix_figure(evaluation: Evaluation, classes: Sequence[str]) -> Figure:
    """Draw true classes (rows) against predicted ones (columns), as a picture of its own.

    Right predictions are blue, mistakes vermilion: the more opaque, the greater the share of the
    row, so that classes of different size can be compared. Up to 20 classes each cell has its
    number of images. Above 100 classes not every one is named.
    """
    side = min(max(0.62 * len(classes), 2.4), 9.0)
    figure, _ = _draw(evaluation, classes, side, names=100, header=0.75)
    grey = "" if evaluation.confusion.sum(axis=1).all() else "; grey: no test samples"
    note = f"blue: right, orange: mistakes, by their share of the true class{grey}"
    style.add_title(figure, f"Accuracy {evaluation.headline}", note)
    return figure


def page_matrix(evaluation: Evaluation, classes: Sequence[str]) -> tuple[Figure, Box]:
    """The same for a page: small, so that its texts are readable on a telephone; and its cells."""
    side = min(max(0.62 * len(classes), 2.4), PAGE_SIDE)
    return _draw(evaluation, classes, side, names=PAGE_NAMES, header=0.1)


def _draw(
    evaluation: Evaluation, classes: Sequence[str], side: float, names: int, header: float
) -> tuple[Figure, Box]:
    """Draw the matrix.

    Args:
        side: of the cells altogether, in inches.
        names: how many of the classes can be named.
        header: room above, in inches.
    """
    from matplotlib.figure import Figure

    confusion, count = evaluation.confusion, len(classes)
    step = -(-count // names)
    cell = 72 * side / count  # points
    size = min(9.0, max(4.5, 0.75 * cell * step))
    labels = style.short_labels(classes, limit=18)
    # The longest name decides; DejaVu's letters are about 0.6 em wide, Chinese ones 1 em.
    ems = max(len(name) * (1.0 if style.is_wide(name) else 0.6) for name in labels)
    room = ems * size / 72 + 0.45
    width, height = max(room + side + 0.1, 4.2 * (header > 0.5)), room + side + header
    figure = Figure(figsize=(width, height), dpi=style.DPI, facecolor="white")
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    rows = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    axes.set_facecolor("none")
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    if count <= NUMBERED:
        _cells(axes, confusion, shares, cell)
    else:
        _pixels(axes, shares, rows[:, 0])
    # Names as plain texts: matplotlib's ticks take three times as long to make and draw.
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(LINE)
    away = (count / side) * 0.06
    for row in range(0, count, step):
        named = {"s": labels[row], "fontsize": size, **text_style()}
        axes.text(-0.5 - away, row, ha="right", va="center", **named)
        axes.text(row, count - 0.5 + away, ha="center", va="top", rotation=90, **named)
    beside, below = (room + side / 2) / width, (room + side / 2) / height
    figure.text(beside, 0.14 / height, "predicted class", ha="center", **text_style(MUTED))
    figure.text(0.14 / width, below, "true class", va="center", rotation=90, **text_style(MUTED))
    return figure, (room / width, header / height, side / width, side / height)


def _cells(
    axes: Axes, confusion: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], cell: float
) -> None:
    """A square and a number for each pair of classes that occurs."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    squares, colours = [], []
    for row in np.flatnonzero(confusion.sum(axis=1) == 0):
        squares.append(Rectangle((-0.5, row - 0.5), len(confusion), 1))
        colours.append(style.EMPTY)
    for row, column in np.argwhere(confusion):
        right, share = row == column, shares[row, column]
        opacity = share if right else FAINT + (1 - FAINT) * share
        squares.append(Rectangle((column - 0.5, row - 0.5), 1, 1))
        colours.append((*to_rgb(RIGHT if right else WRONG), opacity))
        text = f"{confusion[row, column]:,}"
        size = min(10.0, cell / (0.68 * max(len(text), 3)))
        ink = text_style("white" if right and share > 0.55 else INK)
        axes.text(column, row, text, ha="center", va="center", fontsize=size, **ink)
    axes.add_collection(PatchCollection(squares, facecolors=colours, linewidths=0))


def _pixels(axes: Axes, shares: npt.NDArray[np.float64], images: npt.NDArray[np.int64]) -> None:
    """One picture of all pairs: a pixel each, or the greatest share of a block of them."""
    from matplotlib.colors import to_rgb

    count = len(shares)
    block = -(-count // DRAWN)
    size = -(-count // block)

    def pooled(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        padded = np.zeros((size * block, size * block))
        padded[:count, :count] = values
        return np.asarray(padded.reshape(size, block, size, block).max(axis=(1, 3)))

    own = np.eye(count, dtype=bool)
    right, wrong = (pooled(np.where(mask, shares, 0)) for mask in (own, ~own))
    canvas = np.zeros((size, size, 4))
    canvas[pooled(np.broadcast_to(images[:, None] == 0, shares.shape)) > 0] = style.EMPTY
    wrong[right > 0] = 0  # in a block of the diagonal the right ones are shown
    for values, colour in ((right, RIGHT), (wrong, WRONG)):
        seen = values > 0
        canvas[seen, :3] = to_rgb(colour)
        # A root: rare mistakes are what is looked for.
        canvas[seen, 3] = FAINTEST + (1 - FAINTEST) * np.sqrt(values[seen])
    reach = (-0.5, size * block - 0.5, size * block - 0.5, -0.5)
    axes.imshow(canvas, extent=reach, interpolation="none", aspect="auto")
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
