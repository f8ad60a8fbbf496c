"""One Prefect server and one working folder, shared by the tests that run the pipeline."""

import contextlib
import gc
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Yard:
    """A working folder with a running Prefect server.

    Attributes:
        folder: where `mlruns/` is.
        api_url: the server's.
        environment: for subprocesses.
    """

    folder: Path
    api_url: str
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", *arguments]

    @contextlib.contextmanager
    def plugins(self, folder: Path | str) -> Iterator[None]:
        """Make this process and a new worker see the plugins of a folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHYARD_PLUGINS", str(folder))
            self._forget_plugins()
            yield
        self._forget_plugins()

    @contextlib.contextmanager
    def plugin_file(self, name: str, text: str) -> Iterator[None]:
        """Write a plugin into a folder of its own, and use that folder."""
        folder = self.folder / f"plugins_{name}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        with self.plugins(folder):
            yield

    def _forget_plugins(self) -> None:
        from core.host import host
        from core.worker import shared_worker

        host.cache_clear()
        shared_worker().close()

    def here(self, *arguments: str) -> str:
        """Run a command in this process, which spares seconds of imports; gives its output.

        What it raises is raised.
        """
        from pipelines.cli import app

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            app(list(arguments), standalone_mode=False)
        return printed.getvalue()

    def torchyard(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=options.pop("cwd", self.folder),
            env=self.environment | options.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=200,
            **options,
        )


@pytest.fixture(scope="session")
def yard(tmp_path_factory) -> Iterator[Yard]:
    from pipelines.services import PrefectServer, use

    folder = tmp_path_factory.mktemp("yard")
    settings = {
        "PREFECT_HOME": str(folder / "prefect"),
        "TORCHYARD_CACHE": str(folder / "cache"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    before, here = dict(os.environ), Path.cwd()
    os.environ.update(settings)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "TORCHYARD_PLUGINS"):
        os.environ.pop(name, None)
    os.chdir(folder)
    with PrefectServer.connect() as server, use(server.wait()):
        yield Yard(folder, server.api_url, dict(os.environ))
    gc.unfreeze()  # what the commands froze in this process; torch's bindings count their leaks
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)
