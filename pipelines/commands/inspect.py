"""The commands `torchyard inspect` and `inspect-model`: data sets, and models layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import (
    AsJson,
    Overrides,
    PresetOrFile,
    plugin_config,
    preset_config,
)
from torchyard.pipelines.display import Display, print_json, print_table, stdout
from torchyard.pipelines.worker.process import Worker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = ("parameters", "train", "validation", "test", "mean", "std")  # columns
VERBS = {"train": "train", "validation": "validate", "test": "test"}
MAX_COMPONENTS = 8  # longer vectors are summarized

commands = typer.Typer()

Parameters = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="its parameters")]


@commands.command("inspect")
def inspect_dataset(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="a data set's name")],
    parameters: Parameters = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="also draw some of its images into this file"),
    ] = None,
) -> None:
    """Prepare a data set, or find it prepared, and show what is in it.

    Example: [bold]torchyard inspect image_folder path=photos/ --picture photos.png[/]
    """
    resolved = plugin_config("dataset", dataset, parameters)
    _check_picture("--picture", picture)
    arguments: dict[str, Any] = {
        "config": resolved.config.model_dump(mode="json"),
        "cache": str(cache_folder()),
    }
    shown = Display(stdout)
    with closing(Worker(shown.output)) as worker, shown.bars():
        with shown.stage("prepare", dataset):
            worker.call("prepare", shown.event, **arguments)
        with shown.stage("read", dataset):
            facts = worker.call("inspect_dataset", **arguments)
    data = PreparedDataset.open(Path(facts["folder"]))
    _print_dataset(resolved.config.dataset.name, data, facts)
    if picture is not None:
        _draw(data, picture)


@commands.command("inspect-model")
def inspect_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model's name")],
    parameters: Parameters = None,
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="the data set whose samples it takes")
    ] = "digits",
    shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="shape of the samples, instead of the data set's"),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="number of classes, instead of the data set's")
    ] = None,
) -> None:
    """Show a model layer by layer: output shapes and parameters. Nothing is trained.

    Example: [bold]torchyard inspect-model mlp hidden=[64,32] --shape 3,32,32 --classes 10[/]
    """
    sides = None if shape is None else _shape(shape)
    resolved = plugin_config("model", model, parameters, f"dataset={dataset}")
    shown = Display(stdout)
    with closing(Worker(shown.output)) as worker:
        facts = worker.call(
            "inspect_model",
            config=resolved.config.model_dump(mode="json"),
            cache=str(cache_folder()),
            shape=sides,
            classes=classes,
        )
    headings = ("layer", "kind", "output of a batch of 2", "parameters", "trained")
    print_table(headings, map(_layer_row, facts["layers"]), right=NUMBERS)
    frozen = facts["parameters"] - facts["trained"]
    stdout.print(
        f"\n[bold]{escape(model)}[/] on samples of {dimensions(facts['shape'])}, "
        f"{facts['classes']:,} classes: [bold]{facts['parameters']:,}[/] parameters, "
        f"{facts['trained']:,} trained and {frozen:,} not, {facts['buffers']:,} values in buffers; "
        f"{facts['operations']:,} operations in the forward pass of one sample",
        soft_wrap=True,
    )


def _print_dataset(name: str, data: PreparedDataset, facts: dict[str, Any]) -> None:
    lines = {
        "data set": name,
        "samples": ", ".join(f"{count:,} to {VERBS[part]}" for part, count in data.counts.items()),
        "shape": dimensions(data.shape),
        "type": data.dtype,
        "values": "{:g} to {:g}".format(*facts["range"]) if facts["range"] else "0 to 255",
        "digest": data.digest,
        "folder": facts["folder"],
        "source": facts["source"],
    }
    for fact, value in lines.items():
        stdout.print(f"{fact:<9} {escape(str(value))}", soft_wrap=True)
    for note in data.notes:
        stdout.print(f"{'note':<9} {escape(note)}", soft_wrap=True)
    stdout.print()
    _print_statistics(data)
    stdout.print()
    images = facts["images"].values()
    rows: list[list[str | Text]] = [
        [name, *(f"{count:,}" for count in counts)]
        for name, *counts in zip(data.classes, *images, strict=True)
    ]
    total = ("all", *(f"{sum(counts):,}" for counts in images))
    rows.append([Text(cell, "bold") for cell in total])
    print_table(["class", *facts["images"]], rows, right=NUMBERS)


def _print_statistics(data: PreparedDataset) -> None:
    """Mean and std of the training split; least, mean and greatest of many components."""
    images = len(data.shape) == 3
    names: Sequence[str] = [str(number) for number in range(len(data.mean))]
    if images:
        names = {1: ["grey"], 3: ["red", "green", "blue"]}.get(data.shape[0], names)
    rows = list(zip(names, data.mean, data.std, strict=True))
    if len(rows) > MAX_COMPONENTS:
        rows = [
            (f"{word} of {len(names):,}", of(data.mean), of(data.std))
            for word, of in (("least", min), ("mean", fmean), ("greatest", max))
        ]
    if not rows:
        return  # of token ids
    component = "channel, values 0 to 1" if images else "component"
    component = "channel" if len(data.shape) == 2 else component
    cells = [(label, f"{mean:.4g}", f"{std:.4g}") for label, mean, std in rows]
    print_table((component, "mean", "std"), cells, right=NUMBERS)


@commands.command("lr-find")
def find_learning_rate(
    source: PresetOrFile = None,
    overrides: Overrides = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="also draw the loss by the learning rate"),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="batches to train, at most")] = 100,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: train some batches, each with a greater one, and see the loss fall.

    Nothing of it is recorded or kept. The range test of Smith, arXiv:1506.01186.

    Example: [bold]torchyard lr-find cifar10 optimizer=adamw --plot rates.png[/]
    """
    resolved = preset_config(source, overrides)
    _check_picture("--plot", plot)
    config = resolved.config.model_dump(mode="json")
    cache, weights = str(cache_folder()), recorded_weights(resolved)
    shown = Display(stdout if not as_json else None)
    with closing(Worker(shown.output)) as worker, shown.bars():
        worker.call("check", config=config, cache=cache, weights=weights)
        with shown.stage("prepare", resolved.config.dataset.name):
            prepared = worker.call("prepare", shown.event, config=config, cache=cache)
        with shown.stage("train", resolved.config.model.name):
            arguments = {"data": prepared["folder"], "steps": steps, "weights": weights}
            found = worker.call("find_learning_rate", shown.event, config=config, **arguments)
    suggestion = float(f"{found['suggestion']:.2g}")
    if plot is not None:
        from torchyard.core.report.drawing.plots import learning_rate_figure

        _save(learning_rate_figure(found["rates"], found["losses"], suggestion), "--plot", plot)
    if as_json:
        print_json(found | {"suggestion": suggestion})
        return
    losses = found["losses"]
    stdout.print(
        f"The loss fell from {losses[0]:.4f} to {min(losses):.4f} within {len(losses)} batches of "
        f"{found['batch_size']} samples, with rates up to {found['rates'][-1]:.2g}."
    )
    stdout.print(f"Suggested:  [bold]optimizer.lr={suggestion:g}[/]")
    if plot is not None:
        stdout.print(f"Drawn in {escape(str(plot))}", soft_wrap=True)


def _check_picture(option: str, file: Path | None) -> None:
    if file is not None and file.suffix.lower() != ".png":
        raise UserError(f"{option}: {file}: its name must end with .png")
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"{option}: {file}: there is no such folder")


def _save(figure: Figure, option: str, file: Path) -> None:
    try:
        figure.savefig(file)
    except OSError as error:
        raise UserError(f"{option}: {file}: {error.strerror}") from error


def _draw(data: PreparedDataset, file: Path) -> None:
    from torchyard.core.report.drawing.image_grids import labelled_images_figure

    split = data.train
    title = f"{data.name}: training images"
    figure = labelled_images_figure(split.samples, split.labels, data.classes, title)
    if figure is None:
        stdout.print(f"There is no picture: samples of {dimensions(data.shape)} are not images.")
        return
    _save(figure, "--picture", file)
    stdout.print(f"Some of the images are drawn in {escape(str(file))}", soft_wrap=True)


def _layer_row(layer: dict[str, Any]) -> list[str]:
    output = "not called" if not layer["calls"] else "no tensor"
    if layer["output"] is not None:
        output = dimensions(layer["output"])
    if layer["calls"] > 1:
        output += f", {layer['calls']} times"
    trained = "–"
    if layer["parameters"]:
        trained = {0: "no", layer["parameters"]: "yes"}.get(layer["trained"], "partly")
    return [layer["name"], layer["kind"], output, f"{layer['parameters']:,}", trained]


def _shape(text: str) -> list[int]:
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) > 3 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--shape: '{text}' is neither C,H,W (e.g. 3,32,32) nor C,L nor one length")
    sides = [int(part) for part in parts]
    if 0 in sides:
        raise UserError(f"--shape: '{text}': no side can be 0")
    return sides
