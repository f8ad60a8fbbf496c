"""An installation with servers, a worker and schedules of its own, for the slow tests."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_port
from torchyard.pipelines.services.server.access import authorization

SECONDS = 400  # the machine may be busy
LONG = ("model=straight", "train.epochs=1000000")
OFTEN = ("schedule", "digits", *LONG, "--interval", "15s", "--name", "often")

PLUGIN = """
from torchyard import ModelParams, hookimpl


class Straight(ModelParams):
    \"\"\"One layer.\"\"\"

    def build(self, input_shape, num_classes):
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


@hookimpl
def register_models(register):
    register("straight", Straight)
"""


class Sandbox:
    """A PREFECT_HOME with a port of its own, and a working folder with a plugin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "work" / "torchyard_plugins").mkdir(parents=True)
        (folder / "work" / "torchyard_plugins" / "straight.py").write_text(PLUGIN)
        port = free_port()
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "TORCHYARD_"))
        }
        self.environment = plain | {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_API_PORT": str(port),
            "TORCHYARD_CACHE": str(folder / "cache"),
        }
        self.api = f"http://127.0.0.1:{port}/api"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torchyard", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder / "work", env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def torchyard(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == status, printed
        return printed

    def services(self) -> dict[str, dict[str, Any]]:
        status = json.loads(self.torchyard("status", "--json"))
        return {service["name"]: service for service in status["services"]}

    @property
    def password(self) -> str:
        """Of the Prefect server, as `up` names its file."""
        return (self.folder / "home" / "torchyard" / "password").read_text().strip()

    def post(self, path: str, **body: Any) -> Any:
        return json.loads(self.ask("POST", path, body))

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The answer of Prefect's API; asked again while its database is locked."""
        headers = {"Content-Type": "application/json", **authorization(self.password)}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", content, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + SECONDS
        while True:
            try:
                with opener.open(request, timeout=SECONDS) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
                    raise
            time.sleep(0.2)

    def runs(self, *states: str, **where: Any) -> list[dict[str, Any]]:
        chosen = {"flow_runs": {"state": {"type": {"any_": states}}}} if states else {}
        return self.post(
            "flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=20, **chosen, **where
        )

    def run(self, identity: str) -> dict[str, Any]:
        return self.post("flow_runs/filter", flow_runs={"id": {"any_": [identity]}})[0]

    def cancel(self, identity: str) -> None:
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.post(f"flow_runs/{identity}/set_state", state=state)

    def record(self, flow_run: str) -> dict[str, str] | None:
        """The MLflow run of a flow run: its status and tags."""
        database = self.folder / "work" / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            found = store.execute(
                "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = 'prefect.flow_run_id' and t.value = ?",
                [flow_run],
            ).fetchall()
            if not found:
                return None
            [(run_id, status)] = found
        return {**self.tags(run_id), "status": status, "id": run_id}

    def tags(self, run_id: str) -> dict[str, str]:
        """The tags of an MLflow run."""
        database = self.folder / "work" / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            tags = store.execute("select key, value from tags where run_uuid = ?", [run_id])
            return dict(tags.fetchall())

    def ended(self, flow_run: str) -> dict[str, str] | None:
        """The MLflow run of a flow run, once it has ended early and says why."""
        record = self.record(flow_run)
        if record and "torchyard.reason" in record and record["status"] != "RUNNING":
            return record
        return None

    def training(self) -> tuple[str, dict[str, str]] | None:
        """A flow run that trains, its checkpoint written, and its record."""
        for run in self.runs("RUNNING"):
            record = self.record(run["id"])
            if not record or record["status"] != "RUNNING":  # Prefect may not know of its end yet
                continue
            if list(self.folder.glob(f"work/mlruns/runs/{record['id']}/last.pt")):
                return run["id"], record
        return None

    def processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") != self.environment["PREFECT_HOME"]:
                    continue
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def clear(self) -> None:
        """Start the services, without any deployment or run of a test before this one."""
        self.torchyard("up")
        for deployment in self.post("deployments/filter"):
            self.ask("DELETE", f"deployments/{deployment['id']}")
        for run in self.runs("RUNNING", "PENDING"):
            self.cancel(run["id"])
        assert eventually(lambda: not self.runs("RUNNING"))

    def plan(self) -> list[dict[str, Any]]:
        """The schedules and deployments as `torchyard status` lists them."""
        return list(json.loads(self.torchyard("status", "--json"))["plan"])

    def wait_for_standby(self) -> None:
        """Wait until runs begin in the standby of `up`."""

        def listens() -> bool:
            with (
                contextlib.chdir(self.folder / "home" / "torchyard"),
                socket.socket(socket.AF_UNIX) as probe,
            ):
                return probe.connect_ex("standby.sock") == 0

        assert eventually(listens)

    def all_dead(self) -> bool:
        return not [p for p in self.processes("") if p.status() != psutil.STATUS_ZOMBIE]


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The value of the condition once it is true; a server that does not answer is asked again."""
    end = time.monotonic() + seconds
    found = None
    while not found and time.monotonic() < end:
        with contextlib.suppress(OSError, sqlite3.OperationalError):
            found = condition()
        time.sleep(0.2)
    return found
