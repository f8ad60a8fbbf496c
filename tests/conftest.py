"""A Prefect server and a working folder for the tests that run the pipeline; the docs' commands."""

import contextlib
import gc
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# No test asserts a time: a busy machine is no failure.
hypothesis.settings.register_profile("torchyard", deadline=None)
hypothesis.settings.load_profile("torchyard")

# A shell starts what is in its background deaf to Ctrl-C, and all that starts from there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Document:
    """What a page of `docs/` has its reader do.

    Attributes:
        commands: the lines of its `bash` blocks.
        plugins: its `python` blocks; the first line names the file.
    """

    commands: list[str]
    plugins: list[str]

    @classmethod
    def read(cls, name: str) -> "Document":
        text = (DOCS / name).read_text("utf-8")
        blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        bash = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
        return cls(bash, [text for kind, text in blocks if kind == "python"])

    def write_plugins(self, folder: Path) -> None:
        for text in self.plugins:
            file = folder / text.partition("\n")[0].removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a `line` each command of its module's `DOCUMENT`."""
    if "line" in metafunc.fixturenames:
        metafunc.parametrize("line", Document.read(metafunc.module.DOCUMENT).commands)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a slow test, its fixtures included, a quarter of an hour: a machine may be busy."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if marks & {"slow", "long"} and "timeout" not in marks:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="module")
def document(request) -> Document:
    """The page of `docs/` that the module's `DOCUMENT` names."""
    return Document.read(request.module.DOCUMENT)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A store with some runs; who changes it changes it back."""
    from tests.recorded_runs import RecordedRuns

    return RecordedRuns.make(tmp_path_factory.mktemp("recorded 场"))


@dataclass(frozen=True)
class Workspace:
    """A working folder with a running Prefect server.

    Attributes:
        folder: where `mlruns/` is.
        api_url: the server's.
        environment: for subprocesses.
        headers: what the Prefect server's API asks for.
    """

    folder: Path
    api_url: str
    environment: dict[str, str]
    headers: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "torchyard", *arguments]

    def client(self):
        """MLflow's client of the runs here; the first run makes the database."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")

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
        from torchyard.core.hosting.host import host
        from torchyard.pipelines.worker.process import shared_worker

        host.cache_clear()
        shared_worker().close()

    def invoke(self, *arguments: str) -> str:
        """Run a command in this process, which saves seconds of imports; its output.

        Exceptions are not caught.
        """
        from torchyard.pipelines.cli import app

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            app(list(arguments), standalone_mode=False)
        return printed.getvalue()

    def begin(self, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command whose lines can be read as they are printed."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=cwd,
            env=env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

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


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Makes a small disk, of a size such as "6m", that a test may fill."""
    folder = tmp_path / "small"

    def mounted(size: str) -> Path:
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
            pytest.skip("a full disk is a small tmpfs, and mounting one needs root")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Iterator[Workspace]:
    from torchyard.core.tracking.store import chosen_experiment, locked_store
    from torchyard.pipelines.services.prefect_server import PrefectServer, use
    from torchyard.pipelines.services.server.access import authorization

    folder = tmp_path_factory.mktemp("workspace")
    settings = {
        "PREFECT_HOME": str(folder / "prefect"),
        "TORCHYARD_CACHE": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    variables, working_folder = dict(os.environ), Path.cwd()
    os.environ.update(settings)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "TORCHYARD_PLUGINS"):
        os.environ.pop(name, None)
    os.chdir(folder)
    try:
        with PrefectServer.connect() as server, use(server.wait(200)):
            headers = authorization(os.environ["PREFECT_API_AUTH_STRING"])
            environment = dict(os.environ)
            with locked_store() as client:  # its experiment is "1" also where an audit comes first
                chosen_experiment(client, client.tracking_uri)
            yield Workspace(folder, server.api_url, environment, headers)
    finally:
        gc.unfreeze()  # commands froze objects here; torch's bindings report them as leaks
        os.chdir(working_folder)
        os.environ.clear()
        os.environ.update(variables)


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory) -> Iterator[Path]:
    """A working folder of a module's own: other tests have runs and files in the workspace's."""
    own = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own)
        yield own
