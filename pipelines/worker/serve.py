"""The worker process itself: runs the stages that its parent requests on standard input.

python -m torchyard.pipelines.worker.serve FILE_DESCRIPTOR_FOR_MESSAGES
"""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, TextIO

from torchyard.core.data.files import temporary_files_in
from torchyard.core.errors import DivergedError, RunError, UnreachableError, UserError
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import raised_in
from torchyard.core.training.events import Event, as_plain


def serve(messages: IO[str]) -> None:
    """Run the requested stages until standard input closes."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("torchyard").setLevel(logging.INFO)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin, requests), daemon=True).start()
    # What a plugin prints is shown while its stage runs, and is not lost with the process.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    # Requests are not a plugin's to read, nor to close, as `exit()` does.
    sys.stdin = io.StringIO()

    # torch is imported before the first request arrives, without the garbage collector, which
    # would walk the half-built modules again and again (`benchmarks/reasons/startup.md`).
    gc.disable()
    from torchyard.pipelines.worker import stages

    gc.freeze()
    gc.enable()

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    def emit(event: Event) -> None:
        send(event=as_plain(event))

    # Imported one by one while there is no request: the parent of a run imports for longer than
    # this process.
    imports = [stages.load_export, stages.load_compiler]
    waiting = False
    while True:
        while imports and requests.empty() and not waiting:
            imports.pop()()
        request = json.loads(requests.get())
        if "go_on" in request:  # the training had ended by itself before it was answered
            continue
        name = request["stage"]
        if waiting := name is None:
            continue
        while imports and name == "train":  # before its compiler's headers go into the run's folder
            imports.pop()()
        arguments = request["arguments"]
        if request.get("answered"):
            arguments |= {"answers": _answers(requests)}
        try:
            with _temporary_files(request["temporary"]), contained():
                result = stages.STAGES[name](**arguments, emit=emit)
            send(result=result)
        except UserError as error:
            unreachable = isinstance(error, UnreachableError)
            send(error="user", problems=error.problems, unreachable=unreachable)
        except RunError as error:
            diverged = isinstance(error, DivergedError)
            send(error="run", message=str(error), details=error.details, diverged=diverged)
        except Exception as error:
            send(error="run", **_unexpected(error, name, arguments), diverged=False)


def _answers(requests: queue.SimpleQueue[str]) -> Iterator[bool]:
    """Whether to go on, as the parent writes it after each finished epoch."""
    while True:
        yield json.loads(requests.get())["go_on"]


def _temporary_files(folder: str | None) -> AbstractContextManager[None]:
    return temporary_files_in(Path(folder)) if folder else nullcontext()


def _unexpected(error: Exception, stage: str, arguments: dict[str, Any]) -> dict[str, str]:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"message": f"'{stage}' stopped: no space left on the disk.", "details": ""}
    reason = str(error).partition("\n")[0] or "no message"
    where = raised_in(error, host().sources) or _plugins_in_use(arguments)
    message = f"'{stage}' failed{where}: {type(error).__name__}: {reason}"
    return {"message": message, "details": traceback.format_exc()}


def _plugins_in_use(arguments: dict[str, Any]) -> str:
    """The plugins that are not built in: what they call may have raised."""
    plugins = arguments.get("config", {}).get("plugins", {})
    # The files that parameters name are listed there, too, by the setting.
    named = ", ".join(f"{name} of {origin}" for name, origin in plugins.items() if " " in name)
    return f" (with {named})" if named else ""


def _receive(lines: TextIO, requests: queue.SimpleQueue[str]) -> None:
    for line in lines:
        requests.put(line)
    # The parent has ended or closed the pipe. Files are written atomically, so none is half done.
    os._exit(0)


if __name__ == "__main__":
    serve(os.fdopen(int(sys.argv[1]), "w", encoding="utf-8"))
