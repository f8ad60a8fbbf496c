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
from typing import Annotated, Optional
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from torchyard.core.errors import RunError
from torchyard.core.tracking import table
from torchyard.core.tracking.lookup import find_run
from torchyard.core.tracking.store import (
    LOCAL_UI,
    answers,
    chosen_experiment,
    is_server,
    open_existing,
    shown,
    store_errors,
    tracking_uri,
)
from torchyard.pipelines.display import stdout
from torchyard.pipelines.services.manager import ui_address
from torchyard.pipelines.services.prefect_server import (
    listen,
)


def mlflow_ui_command(tracking_uri: str) -> str:
    """What a person types to see the runs in `tracking_uri`, or opens if that is a server already.

    One worker answers in a quarter of the time the default four take to come up, and is enough.
    """
    if is_server(tracking_uri):
        return shown(tracking_uri)
    if not tracking_uri.startswith("sqlite:///"):
        return f'{_mlflow()} ui --backend-store-uri "$MLFLOW_TRACKING_URI" --workers 1'
    database = _shown(Path(tracking_uri.removeprefix("sqlite:///")))
    return f"{_mlflow()} ui --backend-store-uri {shlex.quote(f'sqlite:///{database}')} --workers 1"


def _mlflow() -> str:
    beside = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    if on_path and Path(on_path).absolute() == beside:
        return "mlflow"
    return shlex.quote(str(_shown(beside)))


def _shown(path: Path) -> Path:
    """The path from the working folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


START_SECONDS = 120.0

commands = typer.Typer()


@commands.command()
def ui(
    run: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation
        typer.Argument(metavar="[RUN]", help="an id, a name, latest, best, champion"),
    ] = None,
) -> None:
    """Open the MLflow UI in the browser: the table of runs, or one run.

    A server that is up is used; else one is up until Ctrl-C.
    """
    store = tracking_uri()
    address = shown(store) if is_server(store) else ui_address(store)
    if address is not None:
        _open(address + _page(store, run))
        return
    page = _page(store, run)  # which also finds out whether there is a run at all
    with listen(urlsplit(LOCAL_UI).port or 0) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without the server
    server = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "mlflow", "ui"),
            *("--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
        ],
        # Not among the arguments, which everybody sees: an address may have a password in it.
        env={
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(address):
            if server.poll() is not None or time.monotonic() > end:
                raise RunError(f"The MLflow UI does not come up at {address}.")
            time.sleep(0.2)
        _open(address + page)
        stdout.print("Ctrl-C ends it.")
        server.wait()
    except KeyboardInterrupt:
        stdout.print("Ended.")
    finally:
        server.terminate()
        server.wait()


def _page(store: str, run: str | None) -> str:
    """The page's place in the UI."""
    client = open_existing(store)
    with store_errors(store):
        if run is None:
            experiment = chosen_experiment(client, store).experiment_id
            return f"/#/experiments/{experiment}/runs?viewStateShareKey={table.KEY}"
        info = find_run(client, run).info
    kind = "workflowType=machine_learning"
    return f"/#/experiments/{info.experiment_id}/runs/{info.run_id}?{kind}"


def _open(page: str) -> None:
    stdout.print(escape(page), soft_wrap=True)
    webbrowser.open(page)  # where there is no browser the address is what there is
