"""The command `torchyard ui`: the runs in the browser."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from torchyard.core.errors import RunError
from torchyard.core.tracking import store, table
from torchyard.core.tracking.lookup import find_run
from torchyard.pipelines.display import stdout
from torchyard.pipelines.services.manager import mlflow_server, ui_address

UI_TIMEOUT_SECONDS = 120.0

commands = typer.Typer()


@commands.command()
def ui(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="an id, a name, latest, best, champion")
    ] = None,
) -> None:
    """Open the MLflow UI in the browser: the table of runs, or one run.

    A server that is up is used; otherwise one is started, which runs until Ctrl-C.
    """
    uri = store.tracking_uri()
    address = store.redacted_uri(uri) if store.is_server(uri) else ui_address(uri)
    page = _page(uri, run)  # fails before a server is started if there is no run
    if address is not None:
        _open(address + page)
        return
    address, program, environment = mlflow_server(uri)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the server
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(program, env=os.environ | environment, stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + UI_TIMEOUT_SECONDS
        while not store.answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"The MLflow UI does not start at {address}.")
            time.sleep(0.2)
        _open(address + page)
        stdout.print("Ctrl-C stops it.")
        server.wait()
    except KeyboardInterrupt:
        stdout.print("Stopped.")
    finally:
        server.terminate()
        server.wait()


def mlflow_ui_command(tracking_uri: str) -> str:
    """The shell command that shows the runs of a store; the address of a store that is a server."""
    if store.is_server(tracking_uri):
        return store.redacted_uri(tracking_uri)
    uri = '"$MLFLOW_TRACKING_URI"'  # whose value may contain a password
    if tracking_uri.startswith("sqlite:///"):
        database = _relative(Path(tracking_uri.removeprefix("sqlite:///")))
        uri = shlex.quote(f"sqlite:///{database}")
    # One process of MLflow's server starts faster than the default four.
    return f"{_mlflow()} ui --backend-store-uri {uri} --workers 1"


def _mlflow() -> str:
    beside = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    if on_path and Path(on_path).absolute() == beside:
        return "mlflow"
    return shlex.quote(str(_relative(beside)))


def _relative(path: Path) -> Path:
    """The path relative to the working folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _page(uri: str, run: str | None) -> str:
    """The path of the page in MLflow's UI."""
    client = store.open_existing(uri)
    with store.store_errors(uri):
        if run is None:
            experiment = store.chosen_experiment(client, uri).experiment_id
            return f"/#/experiments/{experiment}/runs?viewStateShareKey={table.KEY}"
        info = find_run(client, run).info
    kind = "workflowType=machine_learning"
    return f"/#/experiments/{info.experiment_id}/runs/{info.run_id}?{kind}"


def _open(page: str) -> None:
    stdout.print(escape(page), soft_wrap=True)
    webbrowser.open(page)  # without a browser, the printed address is enough
