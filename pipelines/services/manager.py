"""The service manager: what `torchyard up` starts, `status` shows and `down` stops.

| daemon          | what it is                                                              |
|-----------------|-------------------------------------------------------------------------|
| `server`        | the Prefect server with its scheduler                                   |
| `worker`        | the Prefect worker: starts the runs that are scheduled on this machine |
| `mlflow-<hash>` | the MLflow UI of one tracking store that `up` was called for            |
| `standby`       | has imported what a run needs, and is forked for each; on Linux         |
| `supervisor`    | starts the others, restarts them when they die, reaps dead runs         |

`services.json` exists while the services are wanted; a daemon is alive while its lock is held
(see `daemon.py`). So any of them can be killed at any moment and `status` stays correct: the
supervisor restarts the others, and they run without a supervisor until the next `up`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import ANSWER_SECONDS, answers
from torchyard.core.redaction import redacted_uri
from torchyard.core.tracking.location.address import database_of, is_server, store_folder_exists
from torchyard.core.tracking.location.relocation import relocate
from torchyard.core.tracking.provenance import user_name
from torchyard.core.tracking.store import LOCAL_UI, check_writable, tracking_uri
from torchyard.pipelines.services.daemon import (
    Daemon,
    DaemonState,
    is_served_by,
    state_lock,
)
from torchyard.pipelines.services.prefect_server import (
    FLOW,
    found_server,
    listen,
    named_server,
    state_folder,
)
from torchyard.pipelines.services.prefect_settings import setting
from torchyard.pipelines.services.server.access import PASSWORD_FILE
from torchyard.pipelines.services.server.answer import check_prefect
from torchyard.pipelines.services.server.process import PERSISTENT, SERVICES_FILE
from torchyard.pipelines.services.standby.client import SOCKET

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEDULES = """
select distinct deployment.name from deployment
join flow on flow.id = deployment.flow_id
join deployment_schedule on deployment_schedule.deployment_id = deployment.id
where flow.name = ? and deployment_schedule.active and not deployment.paused
order by deployment.name
"""
UP_TIMEOUT_SECONDS = 180  # on a busy machine; an idle one takes 20
MAX_STARTS = 2  # a daemon that dies more often than this during `up` will not come up
UP, FOUND, STARTING, DOWN = "up", "found", "starting", "down"


@dataclass(frozen=True)
class ServiceStatus:
    """One row of `torchyard status`.

    Attributes:
        name: Prefect, MLflow, worker or supervisor.
        state: up; found, if torchyard did not start it; starting; down.
        address: where a browser opens it, or the pool of the Prefect worker.
        daemon: the process, if torchyard started it.
        api: the API of a Prefect server.
        log: the log of the daemon.
    """

    name: str
    state: str
    address: str = ""
    daemon: DaemonState | None = None
    api: str = ""
    log: Path | None = None


class ServiceManager:
    """The services of one PREFECT_HOME.

    Raises:
        UserError: PREFECT_HOME or Prefect's settings cannot be used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder()
        self.server = Daemon(self.folder, "server")
        self.worker = Daemon(self.folder, "worker")
        self.supervisor = Daemon(self.folder, "supervisor")
        self.standby = Daemon(self.folder, "standby")

    @property
    def stores(self) -> list[str]:
        """The tracking stores that `up` was called for; empty while no services are wanted.

        The file has no passwords; that of this process's own store is in the environment.
        """
        try:
            stores: list[str] = json.loads((self.folder / SERVICES_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return []
        own = tracking_uri()
        return [own if redacted_uri(own) == store else store for store in stores]

    def mlflow(self, store: str) -> Daemon:
        """The MLflow UI of a store."""
        key = hashlib.sha256(redacted_uri(store).encode()).hexdigest()[:8]
        return Daemon(self.folder, f"mlflow-{key}")

    def up(self) -> list[ServiceStatus]:
        """Start what is not running, and wait until every service answers.

        Raises:
            UserError: the tracking store cannot be used.
            RunError: a service does not come up; the message has the end of its log.
        """
        store = tracking_uri()
        check_writable(store)
        if url := named_server():
            check_prefect(url)
        with state_lock(self.folder):
            before = self.stores
            there = [each for each in before if store_folder_exists(each)]
            if (wanted := there if store in there else [*there, store]) != before:
                with atomic_write(self.folder / SERVICES_FILE) as file:
                    stores = [redacted_uri(each) for each in wanted]
                    file.write(json.dumps(stores).encode())
            if not self.supervisor.state():
                module = "torchyard.pipelines.services.supervisor"
                program = [sys.executable, "-P", "-m", module, str(self.folder)]
                self.supervisor.start(lambda lock: [*program, str(lock)], "")
        deadline = time.monotonic() + UP_TIMEOUT_SECONDS
        starts: set[tuple[str, str]] = set()
        while late := [each for each in self.status() if each.state not in (UP, FOUND)]:
            starts |= {(each.name, each.daemon.started_at) for each in late if each.daemon}
            restarted = any(
                sum(name == each.name for name, _ in starts) > MAX_STARTS for each in late
            )
            unsupervised = any(each.name == "supervisor" for each in late)
            if restarted or unsupervised or time.monotonic() > deadline:
                if not before:
                    self.down()
                raise RunError(_failure(late))
            time.sleep(0.3)
        return self.status()

    def down(self) -> tuple[list[str], bool]:
        """Stop what `up` started; returns what was stopped and whether the server stays.

        The Prefect server stays while runs that were started by hand use it. Runs that the Prefect
        worker started end as KILLED, with a checkpoint.
        """
        with state_lock(self.folder):
            (self.folder / SERVICES_FILE).unlink(missing_ok=True)
            uis = [Daemon(self.folder, path.stem) for path in self.folder.glob("mlflow-*.lock")]
            daemons = (self.supervisor, self.worker, *uis)
            names = [daemon.name.partition("-")[0] for daemon in daemons if daemon.state()]
            for daemon in daemons:
                daemon.stop()
            if (standby := self.standby.state()) and standby.pid:
                os.kill(standby.pid, signal.SIGTERM)  # alone: what it has forked goes on
            server = self.server.state()
        deadline = time.monotonic() + 20
        stays = server is not None
        while stays and time.monotonic() < deadline:
            time.sleep(0.2)
            with state_lock(self.folder):
                stays = self.server.state() == server
        if server and not stays:
            names.append("server")
        with state_lock(self.folder):
            if self.server.state() is None:
                # A browser keeps it for this port, which another user may have next.
                (self.folder / PASSWORD_FILE).unlink(missing_ok=True)
        return names, stays

    def status(self) -> list[ServiceStatus]:
        """The services as they are now, the Prefect server first.

        Servers that torchyard did not start are asked whether they answer.
        """
        with state_lock(self.folder):
            server, worker, supervisor = (
                daemon.state() for daemon in (self.server, self.worker, self.supervisor)
            )
            uis = {store: self.mlflow(store).state() for store in self.stores}
        pool = f"pool {pool_name(worker.address)}" if worker else ""
        return [
            self._prefect_status(server),
            *(self._mlflow_status(store, daemon) for store, daemon in uis.items()),
            ServiceStatus("worker", _state(worker), pool, worker, log=self.worker.log),
            ServiceStatus(
                "supervisor", _state(supervisor), "", supervisor, "", self.supervisor.log
            ),
        ]

    def standby_status(self) -> ServiceStatus | None:
        """The standby that runs begin in, with what it takes; None where there is none.

        Nothing depends on it: `up` does not wait for it.
        """
        with state_lock(self.folder):
            daemon = self.standby.state()
        if daemon is None or daemon.pid is None:
            return None
        takes = ""
        with contextlib.suppress(psutil.Error):
            takes = f"{psutil.Process(daemon.pid).memory_info().rss / 2**20:.0f} MiB of memory"
        state = _state(daemon, (self.folder / SOCKET).exists())
        return ServiceStatus("standby", state, takes, daemon, log=self.standby.log)

    def stored_schedules(self) -> list[str]:
        """The names of what is scheduled, from Prefect's own database while no server has it."""
        variable = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
        url = setting(variable, "server", "database", "connection_url")
        url = url or f"sqlite+aiosqlite:///{self.folder.parent}/prefect.db"
        kind, _, path = url.partition(":///")
        if not kind.startswith("sqlite") or not Path(path).is_file():
            return []
        address = f"{Path(path).absolute().as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                return [name for (name,) in database.execute(SCHEDULES, [FLOW])]
        except sqlite3.Error:  # it is locked, or of another release
            return []

    def _prefect_status(self, daemon: DaemonState | None) -> ServiceStatus:
        if url := named_server() or (None if daemon else found_server()):
            state = FOUND if _is_prefect(url) else DOWN
            return ServiceStatus("Prefect", state, _page(url), api=url)
        url = daemon.address if daemon else ""
        ready = daemon is not None and daemon.mode == PERSISTENT and answers(f"{url}/health")
        state = _state(daemon, ready)
        return ServiceStatus("Prefect", state, _page(url), daemon, url, self.server.log)

    def _mlflow_status(self, store: str, daemon: DaemonState | None) -> ServiceStatus:
        if is_server(store):
            return ServiceStatus("MLflow", FOUND if answers(store) else DOWN, redacted_uri(store))
        ui = self.mlflow(store)
        state = _state(daemon, daemon is not None and serves(daemon.address, ui.processes()))
        address = daemon.address if daemon else redacted_uri(store)
        return ServiceStatus("MLflow", state, address, daemon, log=ui.log)


def ui_address(store: str) -> str | None:
    """The address of the MLflow UI that `torchyard up` started for a store, if it is running."""
    with contextlib.suppress(UserError):  # an unusable PREFECT_HOME has no services
        manager = ServiceManager()
        with state_lock(manager.folder):
            daemon = manager.mlflow(store).state()
        return daemon.address if daemon else None
    return None


def registry_server(store: str) -> MlflowClient | None:
    """A client of the MLflow server that `torchyard up` started for a local store, if it answers.

    Webhooks fire for what it is told alone.
    """
    from mlflow import MlflowClient

    if not (address := ui_address(store)):
        return None
    served = serves(address, ServiceManager().mlflow(store).processes())
    return MlflowClient(address) if served else None


def serves(address: str, processes: Iterable[psutil.Process]) -> bool:
    """Whether a server answers there that is one of the processes.

    Before it came to listen, another user's may have taken the port, or that of another store.
    """
    return answers(f"{address}/health") and is_served_by(processes, urlsplit(address).port or 0)


def served_url(url: str) -> str:
    """A page of MLflow's UI where `torchyard up` serves it, if it does."""
    address = ui_address(tracking_uri())
    return url.replace(LOCAL_UI, address) if address else url


def mlflow_server(store: str, address: str = LOCAL_UI) -> tuple[str, list[str], dict[str, str]]:
    """How to serve MLflow's UI for a store: address, command, and variables for its environment.

    The port is that of `address`, or a free one where that is taken.
    """
    with listen(urlsplit(address).port or 0) as listener:
        port = listener.getsockname()[1]
    # One process of MLflow's server starts faster than the default four.
    program = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": store,  # not an argument: it may contain a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if (database := database_of(store)) is not None:
        relocate(database)  # MLflow's server shows artifacts where the database says they are
        environment["MLFLOW_ARTIFACTS_DESTINATION"] = (database.parent / "artifacts").as_uri()
    return f"http://127.0.0.1:{port}", [*program, *options], environment


def pool_name(api_url: str) -> str:
    """The work pool of the runs that are scheduled on this machine.

    On a server shared by several machines each has its own pool: another machine's Prefect
    worker does not have the files.
    """
    if urlsplit(api_url).hostname in ("127.0.0.1", "localhost"):
        return "torchyard"
    return f"torchyard-{user_name()}-{platform.node()}"


def _state(daemon: DaemonState | None, ready: bool = True) -> str:
    return DOWN if daemon is None else UP if ready else STARTING


def _is_prefect(api_url: str) -> bool:
    try:
        check_prefect(api_url, ANSWER_SECONDS)
    except (UserError, RunError):
        return False
    return True


def _page(api_url: str) -> str:
    return redacted_uri(api_url).removesuffix("/").removesuffix("/api")


def _failure(late: list[ServiceStatus]) -> str:
    lines = []
    for each in late:
        lines.append(f"{each.name} is {each.state}.")
        if each.log is not None and (tail := Daemon(each.log.parent, each.log.stem).log_tail()):
            lines.append(f"Its log is {each.log} and ends with:")
            lines += [f"    {line}" for line in tail]
    return "\n".join(lines)
