"""The process that keeps a yard up: starts its pieces, starts them again, and keeps watch."""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchyard.core.tracking.store import LOCAL_UI, database_of, is_server, one_at_a_time
from torchyard.pipelines.services.daemon import Piece, announce, books, foreign
from torchyard.pipelines.services.manager import Yard, pool_name
from torchyard.pipelines.services.prefect_server import PrefectServer, listen, use
from torchyard.pipelines.services.prefect_settings import configured_api_url

logger = logging.getLogger(__name__)

TEND_SECONDS = 1.0
WATCH_SECONDS = 5.0
LONGEST_PAUSE = 60.0  # between two starts of a piece that dies at once

# A new store's tables are made before MLflow's server looks at it: of two processes that make
# them at once one fails.
MAKE_STORE = (
    "import sys; from torchyard.core.tracking.store import load_mlflow, open_store; "
    "load_mlflow(); open_store(sys.argv[1])"
)


class Keeper:
    """What the keeper of one yard knows and does."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._configured = configured_api_url()
        self._server: PrefectServer | None = None
        self._using = contextlib.ExitStack()
        self._starts: dict[str, tuple[float, float]] = {}  # by piece: the last, the next's pause
        self._troubles: dict[str, str] = {}  # the last of each task
        self._looked = threading.Event()  # the watch has skipped what was missed

    def keep(self) -> None:
        """Tend the pieces for as long as the yard is wanted."""
        threading.Thread(target=self._watch, daemon=True).start()
        while stores := self._yard.stores:
            self._try(self._tend_server)
            for store in stores:
                self._try(self._tend_ui, store)
            if self._looked.is_set():
                self._try(self._tend_worker)
            time.sleep(TEND_SECONDS)

    def _try(self, task: Callable[..., None], *arguments: Any) -> None:
        try:
            task(*arguments)
        except Exception as error:  # a keeper that ends over one trouble keeps nothing
            self._log(task.__name__, error)

    # ---- the pieces

    def _tend_server(self) -> None:
        if self._configured:
            server = PrefectServer(self._configured)
        elif self._server is None or self._needed(self._yard.server):
            server = PrefectServer.share_or_start(self._yard.folder)
        else:
            return
        if self._server is None or self._server.api_url != server.api_url:
            self._using.close()
            self._using.enter_context(use(server.api_url))
        self._server = server

    def _tend_worker(self) -> None:
        assert self._server is not None
        url = self._server.api_url
        with books(self._yard.folder):
            facts = self._yard.worker.found()
            if facts and facts.address != url:  # its server is not there any more
                self._yard.worker.stop()
        if self._needed(self._yard.worker):
            program = [sys.executable, "-P", "-m", "prefect", "worker", "start"]
            options = ["--type", "process", "--pool", pool_name(url), "--name", platform.node()]
            with books(self._yard.folder):
                self._yard.worker.start(foreign([*program, *options]), url)

    def _tend_ui(self, store: str) -> None:
        piece, database = self._yard.mlflow(store), database_of(store)
        if is_server(store) or not self._needed(piece):
            return
        environment = {
            "MLFLOW_BACKEND_STORE_URI": store,  # not an argument: there may be a password in it
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if database is not None:
            environment["MLFLOW_ARTIFACTS_DESTINATION"] = (database.parent / "artifacts").as_uri()
            with one_at_a_time(store):
                if not database.exists():
                    program = [sys.executable, "-P", "-c", MAKE_STORE, store]
                    subprocess.run(program, check=True)
        with books(self._yard.folder):
            piece.stop()  # what its last process left holds the port
            with listen(urlsplit(LOCAL_UI).port or 0) as free:
                port = free.getsockname()[1]
            # One worker answers in a quarter of the time that the default four take.
            program = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
            options = [
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--uvicorn-opts",
                "--log-level warning",
            ]
            address = f"http://127.0.0.1:{port}"
            piece.start(foreign([*program, *options]), address, environment)

    def _needed(self, piece: Piece) -> bool:
        """Whether it is not there, and its last start is not too recent."""
        with books(self._yard.folder):
            if piece.found():
                return False
        now = time.monotonic()
        last, pause = self._starts.get(piece.name, (-LONGEST_PAUSE, 0.0))
        if now < last + pause:
            return False
        died_soon = now < last + pause + LONGEST_PAUSE
        self._starts[piece.name] = now, min(2 * pause or 1.0, LONGEST_PAUSE) if died_soon else 1.0
        return True

    # ---- the watch

    def _watch(self) -> None:
        while self._server is None:
            time.sleep(TEND_SECONDS)
        from torchyard.pipelines.services import reaper

        while True:
            try:
                self._server.wait()
                reaper.skip_missed(pool_name(self._server.api_url))
                self._looked.set()
                reaper.end_dead_flow_runs()
                reaper.delete_forgotten()
                for store in self._yard.stores:
                    reaper.end_dead_runs(store)
            except Exception as error:  # an outage of a server: it is asked again
                self._log("the watch", error)
            time.sleep(WATCH_SECONDS)

    def _log(self, what: str, error: Exception) -> None:
        # Once: what lasts for a night must not fill the disk.
        if self._troubles.get(what) != str(error):
            self._troubles[what] = str(error)
            logger.error("%s:", what, exc_info=error)


if __name__ == "__main__":
    announce(int(sys.argv[2]))
    logging.basicConfig(format="%(asctime)s %(message)s")
    Keeper(Yard(Path(sys.argv[1]))).keep()
