"""The Prefect server of a run: the user's, or one that torchyard starts.

A run needs a Prefect server. One that the user's Prefect settings name is used; else one of the
user's own that answers at Prefect's default address; else torchyard starts one on the user's own
Prefect database (`server/process.py`), which asks for a password (`server/access.py`).

Who serves and who uses the server is recorded in file locks alone, in `$PREFECT_HOME/torchyard/`.
The kernel releases a lock with the process that held it, so no crash leaves a wrong record:

| file          | locked by                      | for as long as                           |
|---------------|--------------------------------|------------------------------------------|
| `server.lock` | the server; has its address    | it lives (it inherits the lock)          |
| `users.lock`  | every user, shared             | the user's process lives                 |
| `start.lock`  | whoever starts or stops it     | two first starts must give one server    |
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.metadata
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from torchyard.core.data.files import private_folder
from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import http_get, is_loopback
from torchyard.core.redaction import redacted_uri
from torchyard.pipelines.services.daemon import (
    Daemon,
    is_served_by_this_user,
    open_lock,
    state_lock,
    try_lock,
)
from torchyard.pipelines.services.prefect_settings import (
    configured_api_url,
    services_folder,
    setting,
)
from torchyard.pipelines.services.server import process
from torchyard.pipelines.services.server.access import password
from torchyard.pipelines.services.server.answer import check_prefect, patience

FLOW = "train_pipeline"
STUDY_FLOW = "sweep"
TRIAL_FLOW = "trial"  # of a study whose trials run in a work pool

T = TypeVar("T")


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
        if api_url := named_server():
            return cls(api_url)
        folder = state_folder()
        try:
            return cls.share_or_start(folder)
        except (OSError, ValueError) as error:
            home = folder.parent
            raise UserError(f"PREFECT_HOME={home}: no Prefect server can start: {error}") from error

    @classmethod
    def share_or_start(cls, folder: Path, kept: list[socket.socket] | None = None) -> PrefectServer:
        """The server of a `state_folder`, one found at the default address, or a new one.

        Args:
            kept: holds the socket of a new one for the caller, from one start to the next: while
                the server is dead, nobody else gets its port, and its clients wait there.
        """
        server = Daemon(folder, "server")
        with state_lock(folder):
            users = open_lock(folder / "users.lock")
            in_use = not try_lock(users)
            fcntl.flock(users, fcntl.LOCK_SH)
            if state := server.state():
                return cls(state.address, server.log)
            if not in_use and (found := found_server()):
                os.close(users)
                return cls(found)
            # The socket listens before the server runs: no other process can take the port while
            # it loads, and a first request queues instead of being refused and retried.
            with kept[0].dup() if kept else reserve(folder, in_use) as listener:
                if kept == []:
                    kept.append(listener.dup())
                port = listener.getsockname()[1]
                api_url = f"http://127.0.0.1:{port}/api"
                server.start(
                    lambda lock: process.command(folder, listener.fileno(), lock),
                    api_url,
                    process.settings(folder, port),
                    [listener.fileno()],
                )
            return cls(api_url, server.log, starting=True)

    def wait(self, timeout: float = 120) -> str:
        """The address of the API, once it answers.

        Raises:
            UserError: the user's settings name something that is no Prefect server.
            RunError: it does not answer within `timeout` seconds, or its process has died.
        """
        if self.log is None:
            check_prefect(self.api_url, min(timeout, patience()))
            return self.api_url
        try:
            http_get(f"{self.api_url}/health", timeout)
        except TimeoutError as error:
            raise self._gone(self.log, f"has not answered for {timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(self.log, "has died") from error
        return self.api_url

    def _gone(self, log: Path, what: str) -> RunError:
        lines = Daemon(log.parent, log.stem).log_tail(100)
        tail = "".join(f"\n    {line}" for line in lines[-5:])
        return RunError(
            f"The local Prefect server at {redacted_uri(self.api_url)} {what}. Its log is "
            f"{log}" + (f" and ends with:{tail}" if tail else ", and empty."),
            details="\n".join(lines),
        )

    def __enter__(self) -> PrefectServer:
        """A server that the user named is asked at once, before seconds of imports."""
        if self.log is None:
            self.wait()
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
                self.wait(patience())  # a busy machine is no reason to blame the server
            except (UserError, RunError) as gone:
                raise gone from error


def state_folder() -> Path:
    """The folder of locks, logs and the password: `torchyard/` in the user's PREFECT_HOME.

    Raises:
        UserError: it cannot be created, or others can write to it.
    """
    folder = services_folder()
    try:
        return private_folder(folder)
    except OSError as error:
        home = folder.parent
        raise UserError(
            f"PREFECT_HOME={home}: no Prefect server can start: {error}. Name a folder of your own "
            "in PREFECT_HOME."
        ) from error


def named_server() -> str | None:
    """The server that the user's settings name; None if it is the one that torchyard starts."""
    api_url = configured_api_url()
    return None if api_url and is_ours(api_url) else api_url


def is_ours(api_url: str) -> bool:
    """Whether torchyard's own server answers there, or did the last time that it ran."""
    own = urlsplit(Daemon(services_folder(), "server").last_address())
    with contextlib.suppress(ValueError):  # it is no address
        given = urlsplit(api_url)
        return is_loopback(given.hostname) and (given.scheme, given.port) == (own.scheme, own.port)
    return False


@contextlib.contextmanager
def use(api_url: str) -> Iterator[None]:
    """Make flows of this process and its children use the server at `api_url`.

    Works before and after Prefect is imported (it reads its settings once, at import).
    """
    changed = {"PREFECT_API_URL": api_url}
    if is_ours(api_url):
        changed["PREFECT_API_AUTH_STRING"] = password(state_folder())
    before = {name: os.environ.get(name) for name in changed}
    context = sys.modules.get("prefect.context")
    settings_before = context and context.GLOBAL_SETTINGS_CONTEXT
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
        if context is None:
            _reread_settings()
        else:
            context.GLOBAL_SETTINGS_CONTEXT = settings_before  # type: ignore[attr-defined]


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
    """A server of this user at Prefect's default address, if this Prefect can use it."""
    port = _default_port()
    api_url = f"http://127.0.0.1:{port}/api"
    try:
        headers, body = http_get(f"{api_url}/admin/version", timeout=1)
        server = [int(part) for part in json.loads(body).split(".")[:2]]
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return None
    client = [int(part) for part in importlib.metadata.version("prefect").split(".")[:2]]
    # Prefect refuses another major version, and warns about a server older than the client.
    usable = server[0] == client[0] and server >= client and process.HEADER not in headers
    # Another user's could have commands run here: those of its deployments.
    return api_url if usable and is_served_by_this_user(port) else None


def _default_port() -> int:
    return int(setting("PREFECT_SERVER_API_PORT", "server", "api", "port") or 4200)


def reserve(folder: Path, in_use: bool) -> socket.socket:
    """A socket for the server: at its last address if it has users who wait for it there."""
    last = urlsplit(Daemon(folder, "server").last_address()).port if in_use else None
    return listen(last or _default_port())


def listen(port: int) -> socket.socket:
    """A socket listening on `port` of 127.0.0.1, or on a free port where that one is taken."""
    for candidate in (port, 0):
        # create_server sets SO_REUSEADDR: otherwise the port stays taken for a minute after a
        # server closed its connections.
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", candidate))
    raise OSError("no port of 127.0.0.1 is free")


def all_pages(read: Callable[..., list[T]], most: float = math.inf, /, **asked: Any) -> list[T]:
    """All that is asked for: Prefect answers with 200 at most, or as many as its server says.

    Args:
        read: a method of Prefect's client that takes an `offset`.
        most: how many there can be; only without it does an empty page say that it was the last.
        asked: what it is asked for, sorted by something that does not change meanwhile.
    """
    found: list[T] = []
    while len(found) < most and (page := read(**asked, offset=len(found))):
        found += page
    return found
