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

import psutil
import typer
from rich.markup import escape

from torchyard.core.errors import RunError, UserError
from torchyard.core.redaction import redacted_uri
from torchyard.core.tracking import store
from torchyard.core.tracking.location.address import is_server
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries import view
from torchyard.pipelines.commands.arguments import chosen_run
from torchyard.pipelines.display import stdout
from torchyard.pipelines.services.manager import (
    DOWN,
    ServiceManager,
    mlflow_server,
    serves,
    ui_address,
)
from torchyard.pipelines.services.server.access import PASSWORD_FILE, login_page

UI_TIMEOUT_SECONDS = 120.0

commands = typer.Typer()


@commands.command()
def ui(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="an id, a name, latest, best, champion")
    ] = None,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Prefect's UI, its password entered")
    ] = False,
) -> None:
    """Open the MLflow UI in the browser: the table of runs, or one run.

    A server that is up is used; otherwise one is started, which runs until Ctrl-C.
    """
    if prefect:
        if run is not None:
            raise UserError("--prefect opens Prefect's UI, and takes no run")
        _open_prefect()
        return
    uri = store.tracking_uri()
    address = redacted_uri(uri) if is_server(uri) else ui_address(uri)
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
        started = psutil.Process(server.pid)
        while not serves(address, [started, *started.children(recursive=True)]):
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


def ui_command(run: str) -> str:
    """The shell command that shows a run: `torchyard ui latest`, as this shell finds it."""
    beside = Path(sys.executable).with_name("torchyard")
    on_path = shutil.which("torchyard")
    program = "torchyard"
    if not on_path or Path(on_path).absolute() != beside:
        here = Path.cwd()
        program = shlex.quote(
            str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
        )
    return f"{program} ui {shlex.quote(run)}"


def _page(uri: str, run: str | None) -> str:
    """The path of the page in MLflow's UI."""
    client = store.open_existing(uri)
    with store_errors(uri):
        if run is None:
            experiment = store.chosen_experiment(client, uri).experiment_id
            return f"/#/experiments/{experiment}/runs?viewStateShareKey={view.KEY}"
        info = chosen_run(client, run).info
    kind = "workflowType=machine_learning"
    return f"/#/experiments/{info.experiment_id}/runs/{info.run_id}?{kind}"


def _open_prefect() -> None:
    services = ServiceManager()
    server = services.status()[0]
    if server.state == DOWN:
        raise UserError("There is no Prefect server; `torchyard up` starts one.")
    if server.daemon is None:  # the user's own, which knows its users
        _open(server.address)
        return
    _open(server.address, login_page(services.folder, server.address).as_uri())
    file = services.folder / PASSWORD_FILE
    stdout.print(f"If it asks for a password: that stands in {escape(str(file))}", soft_wrap=True)


def _open(page: str, opened: str = "") -> None:
    """Print an address, and open it or another one in the browser."""
    stdout.print(escape(page), soft_wrap=True)
    webbrowser.open(opened or page)  # without a browser, the printed address is enough
