"""The process of the Prefect server that torchyard starts; a program.

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
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from torchyard.core.proxies import http_get
from torchyard.core.tracking.store import copy_template_database
from torchyard.pipelines.services.daemon import open_lock, report_pid, try_lock
from torchyard.pipelines.services.server.access import OwnPagesOnly, authorization, password

HEADER = "X-Torchyard"  # a response header with the mode: torchyard started this server
SERVICES_FILE = "services.json"  # in the state folder while `torchyard up` wants the services
PERSISTENT, TEMPORARY = "persistent", "temporary"  # the mode that a server reports


def command(folder: Path, listener: int, lock: int) -> list[str]:
    """Its command line: the state folder, and the descriptors of its socket and its lock."""
    # -P: nothing in the working folder may shadow a module of the server.
    program = [sys.executable, "-P", "-m", "torchyard.pipelines.services.server.process"]
    return [*program, str(folder), str(listener), str(lock)]


def settings(folder: Path, port: int) -> dict[str, str]:
    """The variables for its environment, the password among them."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": password(folder),
        # Of this name, not of the port: an origin is allowed by `OwnPagesOnly`, before Prefect's
        # own answer, which by default allows all.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_BASE_PATH": "/api",
        "PREFECT_SERVER_UI_API_URL": "/api",  # of the origin it was opened at, be it another name
        # Telemetry prints a traceback when offline.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Leases in memory are lost when the server restarts, and then Prefect cancels the
        # scheduled run that cannot renew the one it holds.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
    }


def _serve(folder: Path, listener: socket.socket, lock: int) -> None:
    """Do what `prefect server start` does, without loading its command line.

    That, and importing without the garbage collector, saves three of ten CPU seconds to the first
    answer (`benchmarks/reasons/startup.md`).
    """
    os.umask(0o077)  # its database has the configurations of all runs
    os.set_inheritable(lock, False)  # its children must not hold the lock after its death
    persistent = (folder / SERVICES_FILE).exists()
    # A temporary server must not plan runs, or mark them late, that it will not see start. The
    # other services stay enabled: the user's automations must see this run.
    for service in ("SCHEDULER", "LATE_RUNS"):
        os.environ[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = str(persistent).lower()
    # Nor need it import every installed Prefect collection, as it does to register their block
    # types: with those of Dask and Kubernetes that is a quarter of its start. Prefect registers a
    # type that is used.
    for setting in ("MEMOIZE_BLOCK_AUTO_REGISTRATION", "REGISTER_BLOCKS_ON_START"):
        os.environ[f"PREFECT_SERVER_{setting}"] = str(persistent).lower()
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
        OwnPagesOnly(app),
        log_level="warning",
        # No page may show this one inside itself, and have the user click there.
        headers=[(HEADER, mode), ("X-Frame-Options", "SAMEORIGIN")],
        timeout_graceful_shutdown=5,  # an open browser page must not keep it running
    )
    server = uvicorn.Server(config)
    socket_copy = os.dup(listener.fileno())  # uvicorn closes its own, which refuses requests

    def shut_down() -> None:
        server.should_exit = True

    monitor = threading.Thread(target=_monitor, args=[folder, persistent, shut_down], daemon=True)
    monitor.start()
    port = listener.getsockname()[1]
    threading.Thread(target=_warm_up, args=[folder, port], daemon=True).start()
    server.run(sockets=[listener])
    if not persistent and (folder / SERVICES_FILE).exists():
        for descriptor in (socket_copy, lock):
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, command(folder, socket_copy, lock))


def _warm_up(folder: Path, port: int) -> None:
    """Send a first request, so that FastAPI prepares its routes before a run sends one."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        address = f"http://127.0.0.1:{port}/api/admin/version"
        http_get(address, 60, authorization(password(folder)))


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
