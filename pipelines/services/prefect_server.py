"""The Prefect server of a run, and the process that serves it.

A run needs a Prefect server. One that the user's Prefect settings name is used; else one that
answers at Prefect's default address; else torchyard starts one on the user's own Prefect database.

Who serves and who uses the server is recorded in file locks alone, in `$PREFECT_HOME/torchyard/`.
The kernel releases a lock with the process that held it, so no crash leaves a wrong record:

| file          | locked by                      | for as long as                           |
|---------------|--------------------------------|------------------------------------------|
| `server.lock` | the server; has its address    | it lives (it inherits the lock)          |
| `users.lock`  | every user, shared             | the user's process lives                 |
| `start.lock`  | whoever starts or stops it     | two first starts must give one server    |

A temporary server has no scheduler and exits by itself once `users.lock` is free. While
`services.json` exists (see `manager.py`) the server is persistent and has Prefect's scheduler. A
temporary one becomes persistent without releasing its port: it shuts down while new requests
queue at the socket, and the same process starts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.store import copy_template_database, http_get, redacted_uri
from torchyard.pipelines.services.daemon import Daemon, open_lock, report_pid, state_lock, try_lock
from torchyard.pipelines.services.prefect_settings import configured_api_url, setting

FLOW = "train_pipeline"
HEADER = "X-Torchyard"  # a response header with the mode: torchyard started this server
SERVICES_FILE = "services.json"  # in the state folder while `torchyard up` wants the services
PERSISTENT, TEMPORARY = "persistent", "temporary"  # the mode that a server reports


@dataclass(frozen=True)
class PrefectServer:
    """The Prefect server of this run: configured, found, or started by torchyard.

        with PrefectServer.connect() as server:   # returns at once; the server starts meanwhile
            import mlflow, prefect
            with use(server.wait()):
                flow(...)

    A server that torchyard started is shared by all runs of one PREFECT_HOME. This process counts
    as its user until it exits, not only until the end of the `with`: Prefect sends its last task
    states and log lines at exit.

    Attributes:
        api_url: its API.
        log: its log file, if torchyard started it.
        starting: whether this object started it; it may not answer yet.

    Raises:
        RunError: from `wait` and at the end of the `with`, if the server is gone.
    """

    api_url: str
    log: Path | None = None
    starting: bool = False

    @property
    def managed(self) -> bool:
        """Whether torchyard started it, in this process or another: then it may exit."""
        return self.log is not None

    @classmethod
    def connect(cls) -> PrefectServer:
        """Find the server, or start one. Does not wait for it and does not import Prefect.

        Raises:
            UserError: Prefect's settings cannot be read, or PREFECT_HOME cannot be written to.
        """
        if api_url := configured_api_url():
            return cls(api_url)
        folder = state_folder()
        try:
            return cls.share_or_start(folder)
        except (OSError, ValueError) as error:
            home = folder.parent
            raise UserError(f"PREFECT_HOME={home}: no Prefect server can start: {error}") from error

    @classmethod
    def share_or_start(cls, folder: Path) -> PrefectServer:
        """The server of a `state_folder`, one found at the default address, or a new one."""
        port = _default_port()
        server = Daemon(folder, "server")
        with state_lock(folder):
            users = open_lock(folder / "users.lock")
            fcntl.flock(users, fcntl.LOCK_SH)
            if state := server.state():
                return cls(state.address, server.log)
            if found := found_server():
                os.close(users)
                return cls(found)
            # The socket listens before the server runs: no other process can take the port while
            # it loads, and a first request queues instead of being refused and retried.
            with listen(port) as listener:
                port = listener.getsockname()[1]
                api_url = f"http://127.0.0.1:{port}/api"
                server.start(
                    lambda lock: _server_command(folder, listener.fileno(), lock),
                    api_url,
                    _server_settings(port, api_url),
                    [listener.fileno()],
                )
            return cls(api_url, server.log, starting=True)

    def wait(self, timeout: float = 120) -> str:
        """The address of the API, once it answers.

        Raises:
            RunError: it does not answer within `timeout` seconds, or its process has died.
        """
        try:
            http_get(f"{self.api_url}/health", timeout)
        except TimeoutError as error:
            raise self._gone(f"has not answered for {timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._gone("has died" if self.managed else "does not answer") from error
        return self.api_url

    def _gone(self, what: str) -> RunError:
        if self.log is None:
            return RunError(
                f"The Prefect server at {redacted_uri(self.api_url)} {what}. "
                "Start it, or name another with PREFECT_API_URL."
            )
        lines = Daemon(self.log.parent, self.log.stem).log_tail(100)
        tail = "".join(f"\n    {line}" for line in lines[-5:])
        return RunError(
            f"The local Prefect server at {redacted_uri(self.api_url)} {what}. Its log is "
            f"{self.log}" + (f" and ends with:{tail}" if tail else ", and empty."),
            details="\n".join(lines),
        )

    def __enter__(self) -> PrefectServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """If the server is gone, raise that in place of an error from deep inside httpx."""
        if isinstance(error, Exception) and not isinstance(error, UserError | RunError):
            try:
                self.wait(timeout=5)
            except RunError as gone:
                raise gone from error


def state_folder() -> Path:
    """The folder of locks and logs: `torchyard/` in the user's PREFECT_HOME.

    Raises:
        UserError: it cannot be created.
    """
    home = Path(setting("PREFECT_HOME", "home") or "~/.prefect").expanduser()
    folder = home.absolute() / "torchyard"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"PREFECT_HOME={home}: no Prefect server can start: {error}") from error
    return folder


@contextlib.contextmanager
def use(api_url: str) -> Iterator[None]:
    """Make flows of this process and its children use the server at `api_url`.

    Works before and after Prefect is imported (it reads its settings once, at import).
    """
    changed = {"PREFECT_API_URL": api_url}
    proxies = urllib.request.getproxies_environment()
    if proxies and urlsplit(api_url).hostname == "127.0.0.1":
        # Without it Prefect's client asks the proxy for 127.0.0.1.
        changed["no_proxy"] = ",".join(filter(None, [proxies.get("no"), "127.0.0.1"]))
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    _reread_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reread_settings()


@contextlib.contextmanager
def without_heartbeat() -> Iterator[None]:
    """Flows send no heartbeat to the server, and end sooner.

    The thread that sends it sleeps in whole seconds, and the end of the flow waits for it. A
    server learns from heartbeats that a flow's process has died. One that torchyard started does
    without: it exits with its last user, or has a reaper (`pipelines/services/reaper.py`).
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _reread_settings() -> None:
    # Not `temporary_settings`: that lives in a context variable, which the threads that send
    # Prefect's events and logs do not all inherit.
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def found_server() -> str | None:
    """A server started by others at Prefect's default address, if this Prefect can use it."""
    api_url = f"http://127.0.0.1:{_default_port()}/api"
    try:
        headers, body = http_get(f"{api_url}/admin/version", timeout=1)
        server = [int(part) for part in json.loads(body).split(".")[:2]]
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return None
    client = [int(part) for part in importlib.metadata.version("prefect").split(".")[:2]]
    # Prefect refuses another major version, and warns about a server older than the client.
    usable = server[0] == client[0] and server >= client and HEADER not in headers
    return api_url if usable else None


def _default_port() -> int:
    return int(setting("PREFECT_SERVER_API_PORT", "server", "api", "port") or 4200)


def listen(port: int) -> socket.socket:
    """A socket listening on `port` of 127.0.0.1, or on a free port where that one is taken."""
    for candidate in (port, 0):
        # create_server sets SO_REUSEADDR: otherwise the port stays taken for a minute after a
        # server closed its connections.
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", candidate))
    raise OSError("no port of 127.0.0.1 is free")


def _server_command(folder: Path, listener: int, lock: int) -> list[str]:
    # -P: nothing in the working folder may shadow a module of the server.
    program = [sys.executable, "-P", "-m", "torchyard.pipelines.services.prefect_server"]
    return [*program, str(folder), str(listener), str(lock)]


def _server_settings(port: int, api_url: str) -> dict[str, str]:
    return {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_BASE_PATH": "/api",
        "PREFECT_SERVER_UI_API_URL": api_url,  # its default is port 4200, whatever is served
        # Telemetry prints a traceback when offline.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Leases in memory are lost when the server restarts, and then Prefect cancels the
        # scheduled run that cannot renew the one it holds.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
    }


# ---- the server's process


def _serve(folder: Path, listener: socket.socket, lock: int) -> None:
    """Do what `prefect server start` does, without loading its command line.

    That, and importing without the garbage collector, saves three of ten CPU seconds to the first
    answer (`benchmarks/reasons/startup.md`).
    """
    os.set_inheritable(lock, False)  # its children must not hold the lock after its death
    persistent = (folder / SERVICES_FILE).exists()
    # A temporary server must not plan runs, or mark them late, that it will not see start. The
    # other services stay enabled: the user's automations must see this run.
    for service in ("SCHEDULER", "LATE_RUNS"):
        os.environ[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = str(persistent).lower()
    mode = PERSISTENT if persistent else TEMPORARY
    report_pid(lock, mode)
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    if database := get_current_settings().server.database.connection_url:
        copy_template_database("prefect", database.get_secret_value())
    app = create_app(final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(
        app,
        log_level="warning",
        headers=[(HEADER, mode)],
        timeout_graceful_shutdown=5,  # an open browser page must not keep it running
    )
    server = uvicorn.Server(config)
    socket_copy = os.dup(listener.fileno())  # uvicorn closes its own, which refuses requests

    def shut_down() -> None:
        server.should_exit = True

    monitor = threading.Thread(target=_monitor, args=[folder, persistent, shut_down], daemon=True)
    monitor.start()
    threading.Thread(target=_warm_up, args=[listener.getsockname()[1]], daemon=True).start()
    server.run(sockets=[listener])
    if not persistent and (folder / SERVICES_FILE).exists():
        for descriptor in (socket_copy, lock):
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, _server_command(folder, socket_copy, lock))


def _warm_up(port: int) -> None:
    """Send a first request, so that FastAPI prepares its routes before a run sends one."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        http_get(f"http://127.0.0.1:{port}/api/admin/version", timeout=60)


def _monitor(folder: Path, persistent: bool, shut_down: Callable[[], None]) -> None:
    """End this server when nobody uses it; shut it down once it is to become persistent."""
    starting, users = open_lock(folder / "start.lock"), open_lock(folder / "users.lock")
    unused_seconds = 0
    while unused_seconds < 2:  # the last user's last events need a second to reach the database
        time.sleep(1)
        wanted = (folder / SERVICES_FILE).exists()
        if wanted and not persistent:
            return shut_down()
        if wanted or not try_lock(starting):
            unused_seconds = 0
            continue
        unused_seconds = unused_seconds + 1 if try_lock(users) else 0
        if unused_seconds < 2:
            fcntl.flock(users, fcntl.LOCK_UN)
            fcntl.flock(starting, fcntl.LOCK_UN)
    # This process keeps both locks to its end: the next start waits until it has exited.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(15)
    os._exit(1)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
