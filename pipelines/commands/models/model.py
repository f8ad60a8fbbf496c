"""The commands `predict`, `serve` and `export`: what is done with a run's model."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError
from torchyard.core.formatting import byte_size, percent
from torchyard.core.proxies import is_loopback
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import DATA, WEIGHTS
from torchyard.core.tracking.queries.recorded import recorded_config, recorded_predictions
from torchyard.core.tracking.store import current_store, open_existing, tracking_uri
from torchyard.pipelines.commands.arguments import AsJson
from torchyard.pipelines.display import Display, print_json, print_table, stdout
from torchyard.pipelines.worker.process import shared_worker

if TYPE_CHECKING:
    from torchyard.core.tracking.registry.classifier import Guess

DEFAULT_PORT = 8123
CHECKED = 256  # test samples that an exported file is given

commands = typer.Typer()

LoggedModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|RUN", help="a registered model's name (its champion), NAME/3, or a run"
    ),
]


@commands.command()
def predict(
    model: LoggedModel,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files")],
    top: Annotated[int, typer.Option(min=1, help="how many classes to print")] = 3,
    sets: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="instead of the most probable classes, as many as it takes to have the true one "
            "among them so often, e.g. 0.95",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images with a champion, or with the model of any run.

    A file that cannot be read is reported and skipped, and the exit status is 2.
    """
    if sets is not None and not 0 < sets < 1:
        raise UserError(f"--sets: must be between 0 and 1, such as 0.95, not {sets:g}")
    from torchyard.core.tracking.registry.classifier import ImageClassifier

    served = ImageClassifier.find(model)
    if sets is not None:
        try:
            served.confidence  # noqa: B018 - asked for before torch is imported
        except UserError as error:
            raise UserError([f"--sets: {problem}" for problem in error.problems]) from error
    import numpy as np

    readable, unreadable = [], []
    for path in images:
        try:
            readable.append((path, served.read(path)))
        except UserError as error:
            unreadable += error.problems
    images = [path for path, _ in readable]
    stacked = [image for _, image in readable]
    guesses = served.classify(np.stack(stacked), top, sets) if images else []
    _print_guesses(images, guesses, as_json)
    if unreadable:
        raise UserError(unreadable)


def _print_guesses(images: list[Path], guesses: list[list[Guess]], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "image": str(path),
                "classes": [{"class": each.name, "probability": each.probability} for each in best],
            }
            for path, best in zip(images, guesses, strict=True)
        ]
        print_json(rows, indent=1)
        return
    cells = [
        ("" if rank else str(path), guess.name, percent(guess.probability, space=""))
        for path, best in zip(images, guesses, strict=True)
        for rank, guess in enumerate(best)
    ]
    if images:
        print_table(("image", "class", "probability"), cells, right=("probability",))


@commands.command()
def serve(
    model: LoggedModel,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0: whoever reaches this machine may ask")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = DEFAULT_PORT,
) -> None:
    """Serve a champion, or the model of any run, as an HTTP API until Ctrl-C.

    When the champion changes, the new one is loaded and takes over.
    Example: [bold]torchyard serve digits[/], then
    [bold]curl --data-binary @seven.png http://127.0.0.1:8123/predict[/]
    """
    with _listening(host, port) as listener:
        from torchyard.pipelines.serving.served_model import ServedModel

        served = ServedModel.load(model)
        import uvicorn

        from torchyard.pipelines.serving.app import application

        app = application(served, local=is_loopback(host))
        settings = uvicorn.Config(app, log_level="warning", access_log=False)
        address = f"http://{_written(host)}:{listener.getsockname()[1]}"
        name, kind = escape(served.classifier.version), served.classifier.kind
        stdout.print(f"{name} takes {kind} at {address}/predict", soft_wrap=True)
        stdout.print("Ctrl-C stops it.")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])
    stdout.print("Stopped.")


@commands.command("export")
def export_model(
    model: LoggedModel,
    file_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, pt2 or safetensors")
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="\\[default: named after the run]")
    ] = None,
) -> None:
    """Write a model as a file, checked against what the evaluation predicted.

    Example: [bold]torchyard export digits --format onnx --to digits.onnx[/]
    """
    from torchyard.pipelines.serving.model_file import check_format, write_model_file

    check_format(file_format)
    if to is not None and not to.absolute().parent.is_dir():
        raise UserError(f"--to: {to}: there is no such folder")
    uri = tracking_uri()
    worker = shared_worker()  # torch's import overlaps MLflow's
    client = open_existing(uri)
    import numpy as np

    from torchyard.core.tracking.registry.classifier import Classifier, found_model

    with store_errors(uri):
        _, name, run = found_model(client, model)
        if run is None:
            raise UserError(f"{model}: the run that it is from is deleted, so it cannot be checked")
        table, config = recorded_predictions(client, run), recorded_config(client, run)
    classifier = Classifier.find(model)
    classifier.model  # noqa: B018 - loads it without pickle, and compares its digest
    to = to or Path(re.sub(r"[^\w.-]+", "-", name).strip("-") + f".{file_format}")
    shown = Display(stdout)
    with shown.bars(), tempfile.TemporaryDirectory() as folder:
        with shown.stage("prepare", config["dataset"]["name"]):
            prepared = worker.call(
                "prepare", shown.event, config=config, cache=str(cache_folder())
            )["folder"]
        data = PreparedDataset.open(Path(prepared))
        if data.test_digest != table.test_digest:
            raise UserError(f"{name}: its test samples have changed, so it cannot be checked")
        with store_errors(uri), current_store(uri):
            from mlflow.artifacts import download_artifacts

            logged = Path(download_artifacts(classifier.uri, dst_path=folder))
        checked = write_model_file(
            logged / DATA / WEIGHTS,
            to,
            file_format,
            {"model": name, "digest": classifier.digest, "classes": classifier.classes},
            np.array(data.test.samples[:CHECKED]),
            table.predictions.logits[:CHECKED],
        )
    size = byte_size(to.stat().st_size)
    stdout.print(escape(f"{name} is in {to}, {size}."), soft_wrap=True)
    stdout.print(checked.line, soft_wrap=True)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, before seconds of imports.

    Raises:
        UserError: it cannot; the message names the option.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except socket.gaierror as error:
        raise UserError(f"--host: {host} is no address of this machine: {error.strerror}") from None
    except OSError as error:
        reason = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        setting = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise UserError(
            f"{setting}: {_written(host)}:{port} cannot be served at: {reason}"
        ) from None


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
