"""The local services a run leans on: the Prefect server, and the MLflow UI to look at afterwards.

A run needs a Prefect server. One that the user's own Prefect settings name is used; else one that
answers at Prefect's default address; else torchyard starts one on the user's own Prefect database.

Who lives and who uses whom is kept in file locks alone, in `$PREFECT_HOME/torchyard/`. The kernel
drops a lock with the process that held it, so no death, however sudden, leaves the books wrong:

| file          | locked by                    | for as long as                             |
|---------------|------------------------------|--------------------------------------------|
| `server.lock` | the server; holds its address | it lives (it inherits the lock at birth)   |
| `users.lock`  | every user, shared           | the user's process lives                   |
| `start.lock`  | whoever starts or ends it    | two first starts must give one server      |

Nobody stops the server: it ends by itself once `users.lock` is free, unless `torchyard up` wants
it to stay (`yard.json` is there, see `manager.py`). Then it has Prefect's scheduler, too; a
server that was started for the time of a run becomes one that stays without letting go of its
port: it shuts down, the requests queue, and the same process begins anew.
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
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.store import begin_with_blank, fetch
from torchyard.pipelines.services.daemon import Piece, announce, books, open_lock, try_lock
from torchyard.pipelines.services.prefect_settings import configured_api_url, setting

FLOW = "train_pipeline"
MARK = "X-Torchyard"  # a response header: this server serves one PREFECT_HOME and may go away
WANTED = "yard.json"  # in the folder as long as `torchyard up` wants the server to stay
LASTING, TEMPORARY = "lasting", "temporary"  # what a server says of itself in the books

# ----------------------------------------------------------------------------- the Prefect server


class PrefectServer:
    """The Prefect server of this run: configured, found, or started by torchyard.

        with PrefectServer.connect() as server:   # at once; the server comes up meanwhile
            import mlflow, prefect
            with use(server.wait()):
                flow(...)

    A server that torchyard started is shared by all runs of one PREFECT_HOME, and this process
    counts as its user until it ends, not only until the `with` does: Prefect sends its last task
    states and log lines when the process exits.

    Raises, from `wait` and at the end of the `with`, `RunError` if the server is gone.
    """

    def __init__(self, api_url: str, log: Path | None = None, started: bool = False) -> None:
        self.api_url = api_url
        self.log = log
        """The server's output, if torchyard started it."""
        self.started = started
        """Whether it was started now, and is still to come up."""

    @property
    def ours(self) -> bool:
        """Whether torchyard started it (this process, or another run): then it will go away."""
        return self.log is not None

    @classmethod
    def connect(cls) -> PrefectServer:
        """Find the server, or start one. Does not wait for it, and does not import Prefect.

        Raises `UserError` for settings that cannot be read or a PREFECT_HOME one cannot write to.
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
        """The local server of a `state_folder`, or another that answers at the default port."""
        port = _default_port()
        server = Piece(folder, "server")
        with books(folder):
            users = open_lock(folder / "users.lock")
            fcntl.flock(users, fcntl.LOCK_SH)
            if facts := server.found():
                return cls(facts.address, server.log)
            if found := found_server():
                os.close(users)
                return cls(found)
            # Listening before the server is there: nobody else can take the port while it loads,
            # and a first request waits in the queue instead of being refused and tried again.
            with listen(port) as listener:
                port = listener.getsockname()[1]
                api_url = f"http://127.0.0.1:{port}/api"
                server.start(
                    lambda life: _server_command(folder, listener.fileno(), life),
                    api_url,
                    _server_settings(port, api_url),
                    [listener.fileno()],
                )
            return cls(api_url, server.log, started=True)

    def wait(self, timeout: float = 120) -> str:
        """The address of the API, once it answers.

        Raises `RunError` if it does not within `timeout` seconds, or its process has died.
        """
        try:
            fetch(f"{self.api_url}/health", timeout)
        except TimeoutError as error:
            raise self._gone(f"has not answered for {timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._gone("does not answer" if not self.ours else "has died") from error
        return self.api_url

    def _gone(self, what: str) -> RunError:
        shown = urlsplit(self.api_url)._replace(netloc=urlsplit(self.api_url).netloc.split("@")[-1])
        if self.log is None:
            return RunError(
                f"The Prefect server at {shown.geturl()} {what}. "
                "Start it, or name another with PREFECT_API_URL."
            )
        lines = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
        last = "".join(f"\n    {line}" for line in lines[-5:])
        return RunError(
            f"The local Prefect server at {shown.geturl()} {what}. Its log is {self.log}"
            + (f" and ends with:{last}" if last else ", and empty."),
            details="\n".join(lines[-100:]),
        )

    def __enter__(self) -> PrefectServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Name the server's death as the cause, where it is, instead of an error deep in httpx."""
        if isinstance(error, Exception) and not isinstance(error, UserError | RunError):
            try:
                self.wait(timeout=5)
            except RunError as gone:
                raise gone from error


def state_folder() -> Path:
    """Where it is kept what runs: `torchyard/` in the user's PREFECT_HOME.

    Raises:
        UserError: it cannot be made.
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
    """Make flows of this process, and of processes it starts, speak to the server at `api_url`.

    Works before and after Prefect is imported (it reads its settings once, at import).
    """
    changed = {"PREFECT_API_URL": api_url}
    proxies = urllib.request.getproxies_environment()
    if proxies and urlsplit(api_url).hostname == "127.0.0.1":
        # Prefect's client would ask the proxy for 127.0.0.1.
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
    """Flows send no heartbeat to the server, and end half a second sooner.

    The thread that sends it sleeps in whole seconds, and the flow's end waits for it. It tells a
    server of a flow's process that died. One that torchyard started needs none for that: it ends
    with its last user, or has a keeper that finds the dead (`pipelines/services/reaper.py`).
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
    """A server somebody has started at Prefect's default address, if this Prefect can use it."""
    api_url = f"http://127.0.0.1:{_default_port()}/api"
    try:
        headers, body = fetch(f"{api_url}/admin/version", timeout=1)
        server = [int(part) for part in json.loads(body).split(".")[:2]]
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return None
    client = [int(part) for part in importlib.metadata.version("prefect").split(".")[:2]]
    # Prefect refuses another major version, and warns of a server older than the client.
    usable = server[0] == client[0] and server >= client and MARK not in headers
    return api_url if usable else None


def _default_port() -> int:
    return int(setting("PREFECT_SERVER_API_PORT", "server", "api", "port") or 4200)


def listen(port: int) -> socket.socket:
    """A socket listening on `port` of this machine alone, or on a free one where that is taken."""
    for candidate in (port, 0):
        listener = socket.socket()
        # Else the port stays taken for a minute after a server that closed its connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen()
            return listener
        except OSError:
            listener.close()
    raise OSError("no port of 127.0.0.1 is free")


def _server_command(folder: Path, listener: int, life: int) -> list[str]:
    # -P: nothing in the working folder may stand in for a module of the server.
    program = [sys.executable, "-P", "-m", "torchyard.pipelines.services.prefect_server"]
    return [*program, str(folder), str(listener), str(life)]


def _server_settings(port: int, api_url: str) -> dict[str, str]:
    return {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_BASE_PATH": "/api",
        "PREFECT_SERVER_UI_API_URL": api_url,  # its default is port 4200, whatever is served
        # Telemetry prints a traceback when offline.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Those in memory are gone with the server, and so is the run that holds one: a run that
        # is scheduled one at a time is cancelled when its lease cannot be renewed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
    }


def _serve(folder: Path, listener: socket.socket, life: int) -> None:
    """The server's process: what `prefect server start` does, without its command line.

    8.2 CPU seconds to the first answer instead of 10.2; 1 second less again without the garbage
    collector walking the half-built modules during the imports.
    """
    os.set_inheritable(life, False)  # its own children must not outlive it as "the server"
    staying = (folder / WANTED).exists()
    # A server that is here for one run must not plan or mark late what it will not see start.
    # (The other services stay: without them it would idle at 1.2 instead of 1.4 CPU seconds
    # a minute, and the user's automations would miss this run.)
    for service in ("SCHEDULER", "LATE_RUNS"):
        os.environ[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = str(staying).lower()
    announce(life, LASTING if staying else TEMPORARY)
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    if database := get_current_settings().server.database.connection_url:
        begin_with_blank("prefect", database.get_secret_value())
    app = create_app(final=True)
    gc.freeze()
    gc.enable()
    config = uvicorn.Config(
        app,
        log_level="warning",
        headers=[(MARK, "temporary")],
        timeout_graceful_shutdown=5,  # an open browser page must not keep it
    )
    server = uvicorn.Server(config)
    kept = os.dup(listener.fileno())  # the server closes its own: then requests would be refused

    def stay() -> None:
        server.should_exit = True

    threading.Thread(target=_look_after, args=[folder, staying, stay], daemon=True).start()
    threading.Thread(target=_warm_up, args=[listener.getsockname()[1]], daemon=True).start()
    server.run(sockets=[listener])
    if not staying and (folder / WANTED).exists():
        for descriptor in (kept, life):
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, _server_command(folder, kept, life))


def _warm_up(port: int) -> None:
    """Ask for something: FastAPI prepares its routes at the first request, which takes 0.3 s.

    A run asks for the first time when it has imported all it needs, and would wait.
    """
    with contextlib.suppress(OSError, http.client.HTTPException):
        fetch(f"http://127.0.0.1:{port}/api/admin/version", timeout=60)


def _look_after(folder: Path, staying: bool, stay: Callable[[], None]) -> None:
    """End this server when nobody uses it; have it begin anew when it is to stay."""
    starting, users = open_lock(folder / "start.lock"), open_lock(folder / "users.lock")
    unused = 0
    while unused < 2:  # at least a second for the last user's last events to reach the database
        time.sleep(1)
        wanted = (folder / WANTED).exists()
        if wanted and not staying:
            return stay()
        if wanted or not try_lock(starting):
            unused = 0
            continue
        unused = unused + 1 if try_lock(users) else 0
        if unused < 2:
            fcntl.flock(users, fcntl.LOCK_UN)
            fcntl.flock(starting, fcntl.LOCK_UN)
    # Both locks go with the process: the next start waits until this server has let go.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(15)
    os._exit(1)


# ---------------------------------------------------------------------------------- the MLflow UI


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
