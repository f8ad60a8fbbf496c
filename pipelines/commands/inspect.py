"""The commands `torchyard inspect` and `inspect-model`: data sets, and models layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.pipelines.commands.arguments import plugin_config
from torchyard.pipelines.display import Display, print_table, stdout
from torchyard.pipelines.worker.process import Worker

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
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"--picture: {picture}: its name must end with .png")
    if picture is not None and not picture.absolute().parent.is_dir():
        raise UserError(f"--picture: {picture}: there is no such folder")
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


def _draw(data: PreparedDataset, file: Path) -> None:
    from torchyard.core.report.image_grids import labelled_images_figure

    split = data.train
    title = f"{data.name}: training images"
    figure = labelled_images_figure(split.samples, split.labels, data.classes, title)
    if figure is None:
        stdout.print(f"There is no picture: samples of {dimensions(data.shape)} are not images.")
        return
    try:
        figure.savefig(file)
    except OSError as error:
        raise UserError(f"--picture: {file}: {error.strerror}") from error
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
