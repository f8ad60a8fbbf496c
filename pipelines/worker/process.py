"""A process of its own for the torch work, and the parent's handle on it.

The parent holds Prefect and MLflow, the worker torch: their imports, seconds each, overlap
on two cores, and a trainer that dies (out of memory, a crash in native code) is an error
of one stage, not the end of the flow. Parent and worker exchange JSON lines: a request
`{stage, arguments}`, events while it runs, then a result or an error.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import RunError, UnreachableError, UserError
from torchyard.core.hosting.manager import host
from torchyard.core.hosting.sources import raised_in
from torchyard.core.training.events import Event, as_plain, from_plain


def start_child(
    *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start this interpreter with `arguments`; `options` are Popen's.

    What this process can import, a plugin in the child may need: PYTHONPATH is set to all of
    it. Nothing in the working folder may stand in for a module: -P.
    """
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        **options,
    )


OnEvent = Callable[[Event], None]

TAIL_LINES = 20

# Else glibc gives memory back after each large tensor and takes it anew, page by page: LeNet at
# batch 128 trained 14,800 images/s instead of 16,500. The second is what glibc itself goes up to.
MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


class Worker:
    """The parent's side: starts the process, runs stages in it, ends it.

    Args:
        on_output: gets every line that something in the worker prints.
    """

    def __init__(self, on_output: Callable[[str], None] = lambda line: None) -> None:
        reader, writer = os.pipe()
        # A session of its own: Ctrl-C in the terminal reaches the parent, which decides.
        self._process = start_child(
            "-m",
            "torchyard.pipelines.worker.process",
            str(writer),
            environment={name: os.environ.get(name, size) for name, size in MEMORY.items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,
            text=True,
            errors="replace",
        )
        os.close(writer)
        self._messages: TextIO = os.fdopen(reader, encoding="utf-8")
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.on_output = on_output
        self._calling = threading.Lock()
        self._aborted: Exception | None = None
        self._printer = threading.Thread(target=self._forward_output, daemon=True)
        self._printer.start()

    @property
    def alive(self) -> bool:
        """Whether the process can take a stage."""
        return self._process.poll() is None and not self._messages.closed

    def call(
        self, stage: str, on_event: OnEvent = lambda event: None, **arguments: Any
    ) -> dict[str, Any]:
        """Run one stage of `pipelines/worker/stages.py` and wait for its result.

        Whatever interrupts the waiting (Ctrl-C, an error in `on_event`) ends the worker: it
        would go on with work that nobody wants.

        Args:
            stage: the function's name.
            on_event: called with each event.
            arguments: plain values, sent as JSON.

        Raises:
            UserError, RunError: as the stage raised them.
            RunError: anything else it raised, or the process died.
        """
        with self.asked(stage, on_event, **arguments) as answer:
            return answer()

    @contextlib.contextmanager
    def asked(
        self, stage: str, on_event: OnEvent = lambda event: None, **arguments: Any
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """`call` in two parts: the stage runs beside the body of the `with`.

        Yields what waits for the result, once; who leaves without it, ends the worker.
        """
        answered = False

        def answer() -> dict[str, Any]:
            nonlocal answered
            for line in self._messages:
                message = json.loads(line)
                if "event" in message:
                    on_event(from_plain(message["event"]))
                    continue
                answered = True
                if "error" in message:
                    raise _error(message)
                result: dict[str, Any] = message["result"]
                return result
            raise self._death(stage)

        with self._calling:
            try:
                try:
                    self._send({"stage": stage, "arguments": arguments})
                except (BrokenPipeError, ValueError):  # ValueError: it was closed before
                    raise self._death(stage) from None
                yield answer
            finally:
                if not answered:
                    self.close()

    def wait_for_stage(self) -> None:
        """Leave the processor to others until the next stage is asked for.

        It would import what stages will need, and delay whoever starts a server now: 0.1 s of 6.3.
        """
        with contextlib.suppress(BrokenPipeError, ValueError):  # the next stage will tell
            self._send({"stage": None})

    def abort(self, reason: Exception) -> None:
        """End the process from another thread: who waits for a stage gets `reason` raised."""
        self._aborted = reason
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._messages.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _death(self, stage: str) -> Exception:
        status = self._process.wait()
        self._printer.join(timeout=1)
        self._messages.close()
        if self._aborted is not None:
            return self._aborted
        how = f"exit status {status}"
        if status < 0:
            how = signal.Signals(-status).name
            if status == -signal.SIGKILL:
                how += ", as the system does when memory runs out"
        return RunError(
            f"The process that ran '{stage}' died ({how}).", details="\n".join(self._tail)
        )

    def _forward_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._tail.append(line.rstrip("\n"))
            self.on_output(line.rstrip("\n"))


_shared: list[Worker] = []


def shared_worker() -> Worker:
    """The worker of this process, started where there is none or it has ended."""
    if not _shared or not _shared[-1].alive:
        _shared[:] = [Worker()]
    return _shared[-1]


def abort_shared_worker(reason: Exception) -> None:
    """`Worker.abort` the worker of this process, if there is one."""
    for worker in _shared:
        worker.abort(reason)


def _error(message: dict[str, Any]) -> Exception:
    if message["error"] == "user":
        kind = UnreachableError if message["unreachable"] else UserError
        return kind(message["problems"])
    return RunError(message["message"], details=message["details"])


# ---- the worker's side ----------------------------------------------------------------


def serve(messages: IO[str]) -> None:
    """Run the stages asked for on standard input, until it closes."""
    logging.basicConfig(format="%(message)s")
    for name in ("core", "plugins"):
        logging.getLogger(name).setLevel(logging.INFO)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()

    # The import of torch, seconds long, begins before the first request is here. The garbage
    # collector would walk the half-built modules again and again: 0.4 s.
    gc.disable()
    # Not below /tmp, which is torch's default: another user may have been there before.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))

    from torchyard.pipelines.worker import stages

    gc.freeze()
    gc.enable()

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    def emit(event: Event) -> None:
        send(event=as_plain(event))

    # Done when there is no request, a piece at a time: a run's parent imports for longer than this
    # process. Its first request then finds torch's compiler, 0.7 s; what an export needs, 0.3 s,
    # may be imported while the parent begins the flow.
    idle = [stages.load_export, stages.load_compiler]
    waiting = False
    while True:
        while idle and requests.empty() and not waiting:
            idle.pop()()
        request = json.loads(requests.get())
        name = request["stage"]
        if waiting := name is None:
            continue
        try:
            send(result=getattr(stages, name)(**request["arguments"], emit=emit))
        except UserError as error:
            unreachable = isinstance(error, UnreachableError)
            send(error="user", problems=error.problems, unreachable=unreachable)
        except RunError as error:
            send(error="run", message=str(error), details=error.details)
        except Exception as error:
            reason = str(error).partition("\n")[0] or "no message"
            where = raised_in(error, host().sources) or _strangers(request["arguments"])
            message = f"'{name}' failed{where}: {type(error).__name__}: {reason}"
            details = traceback.format_exc()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                message, details = f"'{name}' stopped: no space left on the disk.", ""
            send(error="run", message=message, details=details)


def _strangers(arguments: dict[str, Any]) -> str:
    """The plugins in use that are not built in: what they call may have raised."""
    plugins = arguments.get("config", {}).get("plugins", {})
    named = ", ".join(f"{name} of {origin}" for name, origin in plugins.items())
    return f" (with {named})" if named else ""


def _receive(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    # The parent is gone or wants no more. Nothing half-written is ever taken for whole.
    os._exit(0)


if __name__ == "__main__":
    serve(os.fdopen(int(sys.argv[1]), "w", encoding="utf-8"))


def check_config(config: RunConfig) -> dict[str, Any]:
    """Try device, model, loss and schedule in the worker before any work.

    Raises:
        UserError: with every problem found.
    """
    return _checked(config.model_dump_json(), str(cache_folder()))


# The command line asks before there is a flow, and the flow asks again.
@functools.cache
def _checked(config: str, cache: str) -> dict[str, Any]:
    return shared_worker().call("check", config=json.loads(config), cache=cache)
