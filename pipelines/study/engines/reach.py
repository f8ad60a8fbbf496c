"""Whether there is something at the address of an engine, asked before a study begins."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import Any

from torchyard.core.errors import UnreachableError
from torchyard.core.study.plan import StudySettings

SECONDS = 10.0


def check_reachable(settings: StudySettings) -> None:
    """Connect to the Dask scheduler or the Ray cluster at the study's address, if it has one.

    Raises:
        UnreachableError: nothing of that kind answers within `SECONDS`.
    """
    if settings.address is None or settings.engine not in ("dask", "ray"):
        return
    address, kind = settings.address, settings.engine.capitalize()
    port = 8786 if settings.engine == "dask" else 6379
    try:
        if address != "auto":
            _connect(address, port)
        _within_seconds(_ask_dask if settings.engine == "dask" else _ask_ray, address)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnreachableError(
            f"study.address: {address}: no {kind} answers there within {SECONDS:g} seconds: "
            f"{reason}"
        ) from error


def _connect(address: str, port: int) -> None:
    """Open a connection: Dask and Ray themselves try for much longer."""
    parts = re.fullmatch(r"(?:\w+://)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?", address)
    if parts is None:
        raise ValueError("it is not of the form host:port")
    with socket.create_connection((parts[1].strip("[]"), int(parts[2] or port)), SECONDS):
        pass


def _within_seconds(ask: Callable[[str], None], address: str) -> None:
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            ask(address)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        raise TimeoutError("it accepts connections and says nothing")
    if failures:
        raise failures[0]


def _ask_dask(address: str) -> None:
    import distributed

    client: Any = distributed.Client
    with client(address, timeout=SECONDS, set_as_default=False):
        pass


def _ask_ray(address: str) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address, namespace="prefect", **options)
    ray.shutdown()
