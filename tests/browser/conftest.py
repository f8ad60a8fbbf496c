"""A store with a few runs, the MLflow server a person would start on it, and a browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 150_000  # milliseconds: the first page of a cold server on a busy machine


@dataclass(frozen=True)
class Site:
    """Runs, and the MLflow server that shows them.

    Attributes:
        address: of the server.
        folder: the working folder of the runs.
        client: of the same store.
        runs: ids by "adam" (the first), "sgd" (the champion of `digits`) and "linear".
    """

    address: str
    folder: Path
    client: MlflowClient
    runs: dict[str, str]

    def name(self, run: str) -> str:
        return self.client.get_run(self.runs[run]).info.run_name


@pytest.fixture(scope="session")
def made_runs(workspace, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Three runs of the digits with three optimizers, and `comparison.html`, in a folder."""
    folder = tmp_path_factory.mktemp("looking")
    settings = {
        "adam": (),
        "sgd": ("optimizer=sgd", "optimizer.lr=0.05", "train.epochs=2", "promote=digits"),
        "linear": ("model=linear", "optimizer=adamw", "train.epochs=2"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runs = {
            name: workspace.invoke("run", "digits", *more, "--quiet").strip()
            for name, more in settings.items()
        }
        workspace.invoke("compare", *runs.values(), "--html", "comparison.html")
    return folder, runs


@pytest.fixture(scope="module")
def site(made_runs) -> Iterator[Site]:
    """The server, as `torchyard ui` starts it."""
    from mlflow import MlflowClient

    from torchyard.pipelines.services.manager import mlflow_server

    folder, runs = made_runs
    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    address, program, environment = mlflow_server(store, f"http://127.0.0.1:{free_port()}")
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            program,
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(f"{address}/health", server, folder / "server.log")
        yield Site(address, folder, MlflowClient(store), runs)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(480):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; one for a module, because Playwright holds the thread's event loop."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)

    with sync_playwright() as playwright:
        # Without its sandbox, which cannot be set up as root; only our own pages are opened.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """An empty page, wide enough for all columns; a script's error on it fails the test."""
    context = browser.new_context(viewport={"width": 2200, "height": 1000})
    context.set_default_timeout(PATIENCE)
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []
