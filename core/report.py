"""The per-class report for people: the confusion matrix, grids of images, Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np

from core.confidence import wilson_interval
from core.evaluation import escape_markdown, percent

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.artist import Artist
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

    from core.dataset import Labels, Samples
    from core.evaluation import Evaluation, Predictions

INK, MUTED, LINE = "#1f2328", "#59636e", "#d0d7de"
SHADE, EMPTY = (0.03, 0.36, 0.66), (0.5, 0.5, 0.5, 0.21)  # EMPTY is #e4e4e4 on white
# Okabe and Ito's vermilion, which every kind of sight tells from grey; darker for text.
WRONG, WRONG_INK = "#d55e00", "#a33f00"
DPI = 150

# matplotlib's own font has no Chinese, Japanese or Korean; any of these helps where installed.
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans GB", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
)


def confusion_matrix_figure(evaluation: Evaluation, classes: Sequence[str]) -> Figure:
    """Draw true classes (rows) against predicted ones (columns).

    The colour is the share of the row, so that classes of different size compare. Up to 20
    classes every cell has its number of images; more have a colour bar instead, on a scale
    that brings out rare mistakes. Above 100 classes not every one is named.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    confusion, count = evaluation.confusion, len(classes)
    numbered, step = count <= 20, -(-count // 100)
    side = min(max(0.62 * count, 2.4), 9.0)  # inches of the matrix alone
    cell = 72 * side / count  # points
    size = min(9.0, max(4.5, 0.75 * cell * step))
    labels = _labels(classes, limit=18)
    # The longest name decides; DejaVu's letters are about 0.6 em wide, Chinese ones 1 em.
    ems = max(len(name) * (1.0 if _is_wide(name) else 0.6) for name in labels)
    room = ems * size / 72 + 0.45
    width, height = max(4.2, room + side + (0.3 if numbered else 0.9)), room + side + 0.75
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    rows = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.full(confusion.shape, np.nan), where=rows > 0)
    # See-through, so that a dark page shows its own ground where white is on paper.
    clear = LinearSegmentedColormap.from_list("shades", [(*SHADE, 0.0), (*SHADE, 1.0)])
    shades = clear.with_extremes(bad=EMPTY)  # where the share is undefined
    axes.set_facecolor("none")
    norm = PowerNorm(1.0 if numbered else 0.5, 0, 1)
    image = axes.imshow(shares, cmap=shades, norm=norm, interpolation="none")
    # Names as plain texts: matplotlib's ticks take three times as long to make and draw.
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(LINE)
    away = (count / side) * 0.06
    for place in range(0, count, step):
        style = {"fontsize": size, **_style()}
        axes.text(-0.5 - away, place, labels[place], ha="right", va="center", **style)
        style["rotation"] = 90
        axes.text(place, count - 0.5 + away, labels[place], ha="center", va="top", **style)
    beside, below = (room + side / 2) / width, (room + side / 2) / height
    figure.text(beside, 0.14 / height, "predicted class", ha="center", **_style(MUTED))
    figure.text(0.14 / width, below, "true class", va="center", rotation=90, **_style(MUTED))
    if numbered:
        for row, column in np.argwhere(confusion):
            text = f"{confusion[row, column]:,}"
            style = _style("white" if shares[row, column] > 0.55 else INK)
            style["fontsize"] = min(10.0, cell / (0.68 * max(len(text), 3)))
            axes.text(column, row, text, ha="center", va="center", **style)
    else:
        bar = figure.add_axes(((room + side + 0.15) / width, room / height, 0.13 / width, 0.4))
        figure.colorbar(image, cax=bar).outline.set_edgecolor(LINE)
        scale = {0: "0 %", 0.01: "1 %", 0.1: "10 %", 0.25: "25 %", 0.5: "50 %", 1: "100 %"}
        bar.set_yticks(list(scale), list(scale.values()), fontsize=8, **_style(MUTED))
    grey = "" if rows.all() else "; grey: no test images"
    _title(figure, f"Accuracy {_headline(evaluation)}", f"colour: share of the true class{grey}")
    return figure


def test_images_figure(
    samples: Samples,
    predictions: Predictions,
    classes: Sequence[str],
    count: int = 36,  # noqa: PT028
) -> Figure | None:
    """Draw a grid of test images with their true and predicted names.

    Every class has its turn, or as many classes as there is room for; which of its images
    are shown is random but the same each time. A wrong one has a frame, a cross and both
    names, true → predicted; the percentage is the probability of the predicted class.

    Args:
        samples: uint8 N x C x H x W; only those shown are read.
        predictions: of these N samples.
        classes: the names, in the order of the class indices.
        count: how many images at most.

    Returns:
        None where there is nothing to look at: vectors, or neither 1 nor 3 channels.
    """
    if not drawable(samples):
        return None
    chosen, names = _choose(predictions.targets, count), _grid_labels(classes)
    trues, guesses = predictions.targets[chosen], predictions.predicted[chosen]
    captions = [
        (f"✓ {names[true]}\n" if true == guess else _taken_for(names, true, guess)) + share
        for true, guess, share in zip(trues, guesses, _shares(predictions, chosen), strict=True)
    ]
    wrong = trues != guesses
    title, count = f"{len(chosen):,} of {len(samples):,} test images", int(wrong.sum())
    note = f"✓ right: {len(chosen) - count}    ✗ wrong: {count}, true → predicted    %: confidence"
    return _grid(samples, chosen, captions, wrong, title, note)


def confident_mistakes_figure(
    samples: Samples,
    predictions: Predictions,
    classes: Sequence[str],
    count: int = 16,
) -> Figure | None:
    """Draw the test images that the network was surest of and wrong about, the surest first.

    They show what it mixes up, and often a wrong label. The percentage is the probability
    of the wrong class.

    Args:
        samples: uint8 N x C x H x W; only those shown are read.
        predictions: of these N samples.
        classes: the names, in the order of the class indices.
        count: how many images at most.

    Returns:
        None where no prediction is wrong, or the samples are no images to look at.
    """
    mistakes = np.flatnonzero(predictions.predicted != predictions.targets)
    if not drawable(samples) or not len(mistakes):
        return None
    surest = np.argsort(-predictions.confidence[mistakes], kind="stable")[:count]
    chosen, names = mistakes[surest], _grid_labels(classes)
    trues, guesses = predictions.targets[chosen], predictions.predicted[chosen]
    captions = [
        _taken_for(names, true, guess) + share
        for true, guess, share in zip(trues, guesses, _shares(predictions, chosen), strict=True)
    ]
    title = f"{len(chosen):,} of {len(mistakes):,} mistakes"
    note = "the surest first    ✗ true → predicted    %: probability of the predicted class"
    return _grid(samples, chosen, captions, [True] * len(chosen), title, note)


def labelled_images_figure(
    samples: Samples,
    labels: Labels,
    classes: Sequence[str],
    title: str,
    count: int = 36,
) -> Figure | None:
    """Draw a grid of images with the names of their classes, of a split or of a batch.

    Every class has its turn, or as many classes as there is room for; which of its images
    are shown is random but the same each time.

    Args:
        samples: uint8 N x C x H x W; only those shown are read.
        labels: N class indices.
        classes: the names, in the order of the class indices.
        title: what the images are.
        count: how many images at most.

    Returns:
        None where there is nothing to look at: no sample, vectors, or neither 1 nor 3
        channels.
    """
    if not drawable(samples) or not len(samples):
        return None
    chosen, names = _choose(labels, count), _grid_labels(classes)
    captions = [f"{names[label]}\n" for label in labels[chosen]]
    shown = len(np.unique(labels[chosen]))
    note = f"{len(chosen):,} of {len(samples):,} images, of {shown:,} of {len(classes):,} classes"
    return _grid(samples, chosen, captions, [False] * len(chosen), title, note)


def drawable(samples: Samples) -> bool:
    """Whether the samples are images to look at: grey or colour, 8 bits."""
    return samples.ndim == 4 and samples.shape[1] in (1, 3) and samples.dtype == np.uint8


def _grid_labels(classes: Sequence[str]) -> list[str]:
    return _labels(classes, limit=15)


def _taken_for(names: Sequence[str], true: int, guess: int) -> str:
    return f"✗ {names[true]} →\n{names[guess]}  "


def _shares(predictions: Predictions, chosen: npt.NDArray[np.int64]) -> list[str]:
    return [f"{100 * share:.0f} %" for share in predictions.confidence[chosen]]


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
    # Pixels. Images that are no squares keep their form, within reason.
    box_x = 168
    box_y = round(box_x * min(max(samples.shape[2] / samples.shape[3], 0.3), 2.0))
    step_x, step_y, margin, header = box_x + 26, box_y + 78, 30, 100
    width = columns * step_x - 26 + 2 * margin
    height = header + -(-len(chosen) // columns) * step_y
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for place, (index, text, framed) in enumerate(zip(chosen, captions, wrong, strict=True)):
        left, top = margin + place % columns * step_x, header + place // columns * step_y
        tile = _fit(samples[index], box_y, box_x)
        y, x = top + (box_y - tile.shape[0]) // 2, left + (box_x - tile.shape[1]) // 2
        style, frame, colour = _style(), 1, LINE
        if framed:
            style, frame, colour = _style(WRONG_INK), 6, WRONG
        edge = np.s_[y - frame : y + len(tile) + frame, x - frame : x + tile.shape[1] + frame]
        canvas[edge] = np.multiply(255, to_rgb(colour))
        canvas[y : y + len(tile), x : x + tile.shape[1]] = tile
        axes.text(left, top + box_y + 12, text, va="top", fontsize=7, **style)
    # All images are one picture: an axes for each takes many times as long.
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.add_artist(_pixels(canvas))
    _title(figure, title, note)
    return figure


def _pixels(canvas: npt.NDArray[np.uint8]) -> Artist:
    """A picture of H x W x 3 that fills its figure, drawn a pixel a pixel.

    `Figure.figimage` would resample it in floating point first: 0.24 s a figure instead of 0.10.
    """
    from matplotlib.artist import Artist

    class Pixels(Artist):
        zorder = 0

        def draw(self, renderer: RendererBase) -> None:
            opaque = np.full((*canvas.shape[:2], 1), 255, dtype=np.uint8)
            renderer.draw_image(renderer.new_gc(), 0, 0, np.dstack([canvas[::-1], opaque[::-1]]))

    return Pixels()


def markdown_report(
    evaluation: Evaluation,
    classes: Sequence[str],
    *,
    facts: Mapping[str, str | float],
    command: str,
    links: Mapping[str, str] | None = None,
) -> str:
    """Write the report as GitHub Markdown.

    Args:
        evaluation: of the test split.
        classes: the names, in the order of the class indices.
        facts: what to state of the run, in this order; "model" and "data set" make the
            headline. Floats are written with four digits: put a unit into the name.
        command: what runs the same again.
        links: names and addresses.
    """
    names = [escape_markdown(name) for name in classes]
    title = " on ".join(str(facts[key]) for key in ("model", "data set") if key in facts)
    heading = f"# {escape_markdown(title or 'Test')}: {percent(evaluation.accuracy)}"
    table = evaluation.per_class
    tested = table[table["images"] > 0].sort_values("accuracy", kind="stable")
    weakest = [f"{names[i]} ({percent(table['accuracy'][i])})" for i in map(int, tested.index[:3])]
    low, high = wilson_interval(evaluation.confusion.trace(), evaluation.images)
    # MLflow shows the first lines, and the rest when asked.
    summary = f"95 % interval {percent(float(low))} to {percent(float(high))}."
    if len(tested) > 1:
        summary += f" Weakest: {', '.join(weakest)}."
    lines = [heading, "", summary, "", "| | |", "| :--- | :--- |"]
    loss = f"{evaluation.cross_entropy:.4f} nats"
    result = {"accuracy": _headline(evaluation), "cross-entropy": loss}
    for key, value in {**facts, **result}.items():
        text = value if isinstance(value, str) else _number(value)
        lines.append(f"| {escape_markdown(key)} | {escape_markdown(text)} |")

    empty = [names[i] for i in table.index[table["images"] == 0]]
    lines += ["", "## Classes, from weakest to strongest", ""]
    if empty:
        lines += [f"Without a test image, so nothing is known of them: {', '.join(empty)}.", ""]
    lines += [evaluation.per_class_markdown(weakest_first=True), "## Most confused", ""]
    pairs = [
        f"| {names[i]} | {names[j]} | {n:,} | {percent(n / evaluation.confusion[i].sum())} |"
        for i, j, n in evaluation.most_confused(5)
    ]
    if pairs:
        lines += ["| true | predicted | images | share of true |", "| :--- | :--- | ---: | ---: |"]
    lines += pairs or ["No test image was taken for another class."]
    fence = "```" if "```" not in command else "~~~~"
    lines += ["", "## Run it again", "", f"{fence}sh", command, fence]
    if links:
        lines += ["", "## Look closer", ""]
    for name, address in (links or {}).items():
        safe = address.translate({ord("<"): "%3C", ord(">"): "%3E", ord(" "): "%20"})
        lines.append(f"- [{escape_markdown(name)}](<{safe}>)")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.4g}" if value % 1 and abs(value) < 1000 else f"{value:,.0f}"


def _headline(evaluation: Evaluation) -> str:
    correct = int(evaluation.confusion.trace())
    return f"{percent(evaluation.accuracy)} ({correct:,} of {evaluation.images:,} test images)"


def _choose(targets: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of up to `count` samples, sorted by class, the classes as equal as can be."""
    import pandas as pd

    order = np.random.default_rng(0).permutation(len(targets))
    # The first sample of every class, in a random order, then the second of every class, …
    turn = pd.Series(order).groupby(targets[order]).cumcount().to_numpy()
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return chosen[np.argsort(targets[chosen], kind="stable")]


def _fit(image: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.uint8]:
    """C x H x W as RGB of at most this size: whole pixels when enlarged, averaged when not."""
    from PIL import Image

    pixels = np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    scale = float(int(scale)) if scale >= 1 else scale
    shape = max(1, round(scale * pixels.shape[1])), max(1, round(scale * pixels.shape[0]))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(shape, how))


def _title(figure: Figure, title: str, note: str) -> None:
    left, height = 0.2 / figure.get_figwidth(), figure.get_figheight()
    figure.text(left, 1 - 0.13 / height, title, va="top", fontsize=12, weight="bold", **_style())
    figure.text(left, 1 - 0.38 / height, note, va="top", fontsize=8, **_style(MUTED))


def _style(colour: str = INK) -> dict[str, Any]:
    # No mathematics: a class may be called "$x$".
    return {"color": colour, "parse_math": False, "fontfamily": list(_fonts()[0])}


@cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """The font families to draw with, and every character that one of them has."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))
    drawable: set[int] = set()
    for family in families:
        drawable.update(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return families, frozenset(drawable)


def _is_wide(text: str) -> bool:
    return any(east_asian_width(letter) in "WF" for letter in text)


def _labels(classes: Sequence[str], limit: int) -> list[str]:
    """Names on one line, short, and without what no font can draw: then with the number.

    matplotlib would warn of every such character each time that a figure is saved.
    """
    drawable, labels = _fonts()[1], []
    for number, name in enumerate(classes):
        line = " ".join(name.split())
        kept = "".join(letter for letter in line if ord(letter) in drawable).strip()
        label = kept if kept == line and kept else f"#{number} {kept}".strip()
        most = limit // 2 if _is_wide(label) else limit
        if len(label) > most:
            label = f"{label[: most - 4]}…{label[-3:]}"
        labels.append(label)
    times = Counter(labels)
    return [f"#{i} {t[: limit - 5]}" if times[t] > 1 else t for i, t in enumerate(labels)]
