"""Whether there is something at the address of an engine, asked before a study begins."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

from torchyard.core.errors import UnreachableError
from torchyard.core.study.plan import StudySettings

SECONDS = 10.0
ASK = {
    "dask": "import sys, distributed; print(flush=True); distributed.Client(sys.argv[1]).close()",
    "ray": "import sys, ray; print(flush=True); ray.init(sys.argv[1])",
}


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
        _ask(ASK[settings.engine], address, kind)
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


def _ask(code: str, address: str, kind: str) -> None:
    """Speak with what listens there, in a process of its own.

    Ray aborts its process where it does not understand what it hears, Dask waits on.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is imported
        status: int | None = None
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    if status != 0:
        raise ConnectionError(f"what accepts connections there does not speak with {kind}")
