"""The supervisor process: starts the daemons, restarts them, and runs the reaper."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchyard.core.redaction import redact_logs
from torchyard.core.tracking.location.address import database_of, is_server, store_folder_exists
from torchyard.core.tracking.store import LOCAL_UI, store_lock
from torchyard.pipelines.services.daemon import Daemon, exec_command, report_pid, state_lock
from torchyard.pipelines.services.manager import ServiceManager, mlflow_server, pool_name
from torchyard.pipelines.services.prefect_server import PrefectServer, named_server, use
from torchyard.pipelines.services.prefect_settings import setting
from torchyard.pipelines.worker.process import start_variables

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
REAP_SECONDS = 5.0
CLEAN_SECONDS = 60.0  # that the Prefect worker waits at most for the end of dead runs
MAX_BACKOFF = 60.0  # seconds between two starts of a daemon that keeps dying

# By default a Prefect worker asks every ten seconds, sometimes every thirteen, for the runs of the
# next ten: one that is started by hand waits, and some that are scheduled are late. Each question
# took its server some 70 ms of a busy machine, 2 % of a processor at the interval chosen here.
QUERY_SECONDS = "PREFECT_WORKER_QUERY_SECONDS"

STANDBY = "torchyard.pipelines.services.standby.process"

# A new store's tables are created before MLflow's server opens it: of two processes that create
# them at once one fails.
CREATE_STORE = (
    "import sys; from torchyard.core.tracking.store import load_mlflow, open_store; "
    "load_mlflow(); open_store(sys.argv[1])"
)


class Supervisor:
    """Keeps the daemons of one service manager running."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._environment = dict(os.environ)  # of `up`: libraries set variables of their own
        self._configured = named_server()
        self._server: PrefectServer | None = None
        self._socket: list[socket.socket] = []  # of the server
        self._using = contextlib.ExitStack()
        self._starts: dict[str, tuple[float, float]] = {}  # by daemon: last start, then backoff
        self._errors: dict[str, str] = {}  # by task: the last message
        self._cleaned = threading.Event()
        self._patience = time.monotonic() + CLEAN_SECONDS

    def run(self) -> None:
        """Check the daemons every second for as long as the services are wanted."""
        threading.Thread(target=self._reap, daemon=True).start()
        while stores := self._manager.stores:
            self._try(self._ensure_server)
            for store in stores:
                self._try(self._ensure_ui, store)
            # A dead run holds its schedule's slot, so that the next one would be skipped. And while
            # hundreds are ended after a reboot, the worker finds the server's database locked. It
            # does not wait for thousands: `up` would give up before.
            if self._cleaned.is_set() or time.monotonic() > self._patience:
                self._try(self._ensure_worker)
                if sys.platform == "linux":
                    self._try(self._ensure_standby)
            time.sleep(CHECK_SECONDS)

    def _try(self, task: Callable[..., None], *arguments: Any) -> None:
        try:
            task(*arguments)
        except Exception as error:  # one daemon's failure must not end the supervision of others
            self._log(task.__name__, error)

    # ---- the daemons

    def _ensure_server(self) -> None:
        if self._configured:
            server = PrefectServer(self._configured)
        elif self._server is None or self._due(self._manager.server):
            server = PrefectServer.share_or_start(self._manager.folder, self._socket)
        else:
            return
        if self._server is None or self._server.api_url != server.api_url:
            self._using.close()
            self._using.enter_context(use(server.api_url))
        self._server = server

    def _ensure_worker(self) -> None:
        assert self._server is not None
        url, worker = self._server.api_url, self._manager.worker
        with state_lock(self._manager.folder):
            state = worker.state()
            if state and state.address != url:  # the server is on another port now
                worker.stop()
        if self._due(worker):
            program = [sys.executable, "-P", "-m", "prefect", "worker", "start"]
            options = ["--type", "process", "--pool", pool_name(url), "--name", platform.node()]
            with state_lock(self._manager.folder):
                worker.start(exec_command([*program, *options]), url, polling())

    def _ensure_standby(self) -> None:
        standby = self._manager.standby
        if self._due(standby):
            program = [sys.executable, "-P", "-m", STANDBY, str(self._manager.folder)]
            inherited = start_variables(self._environment)
            with state_lock(self._manager.folder):
                standby.start(lambda lock: [*program, str(lock)], "", inherited=inherited)

    def _ensure_ui(self, store: str) -> None:
        ui, database = self._manager.mlflow(store), database_of(store)
        last = ui.last_address() if ui.name in self._starts else LOCAL_UI  # it comes back there
        if not store_folder_exists(store):  # its project was moved: it must not be made again
            if ui.state():
                ui.stop()
            return
        if is_server(store) or not self._due(ui):
            return
        if database is not None:
            with store_lock(store):
                if not database.exists():
                    program = [sys.executable, "-P", "-c", CREATE_STORE, store]
                    subprocess.run(program, check=True)
        with state_lock(self._manager.folder):
            ui.stop()  # children of a dead UI still hold the port
            address, program, environment = mlflow_server(store, last)
            ui.start(exec_command(program), address, environment)

    def _due(self, daemon: Daemon) -> bool:
        """Whether it is not running and its backoff is over; if so, counts this as a start."""
        with state_lock(self._manager.folder):
            if daemon.state():
                return False
        now = time.monotonic()
        last, backoff = self._starts.get(daemon.name, (-MAX_BACKOFF, 0.0))
        if now < last + backoff:
            return False
        died_soon = now < last + backoff + MAX_BACKOFF
        self._starts[daemon.name] = now, min(2 * backoff or 1.0, MAX_BACKOFF) if died_soon else 1.0
        return True

    # ---- the reaper

    def _reap(self) -> None:
        while self._server is None:
            time.sleep(CHECK_SECONDS)
        from torchyard.pipelines.services import reaper

        while True:
            try:
                self._server.wait()
                pool = pool_name(self._server.api_url)
                reaper.skip_missed(pool)
                stores = [*filter(store_folder_exists, self._manager.stores)]
                reaper.end_dead_flow_runs(pool, stores)
                reaper.delete_retired()
                self._cleaned.set()
                for store in stores:
                    reaper.end_dead_runs(store)
            except Exception as error:  # a server is down: try again
                self._log("reaper", error)
            time.sleep(REAP_SECONDS)

    def _log(self, task: str, error: Exception) -> None:
        # Once per message: an outage that lasts all night must not fill the disk.
        if self._errors.get(task) != str(error):
            self._errors[task] = str(error)
            logger.error("%s:", task, exc_info=error)


def polling() -> dict[str, str]:
    """Variables with which a Prefect worker asks often for runs, unless the user has chosen."""
    return {} if setting(QUERY_SECONDS, "worker", "query_seconds") else {QUERY_SECONDS: "3"}


if __name__ == "__main__":
    report_pid(int(sys.argv[2]))
    logging.basicConfig(format="%(asctime)s %(message)s")
    redact_logs()
    Supervisor(ServiceManager(Path(sys.argv[1]))).run()
