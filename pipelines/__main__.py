"""The process of the `torchyard` command: how it starts and ends, around the command line."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchyard.pipelines.streams import Output

ENDING_SECONDS = 10.0  # in which a second Ctrl-C breaks into nothing

_interrupted: float | None = None  # when the first Ctrl-C came
_status = 1  # also of an unexpected error, which ends with a traceback
_output: Output | None = None


def main() -> None:
    """Run the command line, in a process of `torchyard up` that is ready for it if there is one."""
    if _trains() and sys.stderr is not None and sys.stderr.isatty():
        # Seconds of imports follow. The first line, which is longer, is written over it.
        # Nothing else is imported before it, so that it is there at once.
        print("starting …", end="\r", file=sys.stderr, flush=True)
    if _trains() and "--help" not in sys.argv:
        from torchyard.pipelines.services.standby.client import hand_over

        try:
            status = hand_over("command")
        except KeyboardInterrupt:
            status = 130
        if status is not None:
            os._exit(status)
    import atexit

    # Registered first, so called last: Prefect has sent its last events by then.
    atexit.register(leave)
    command()


def command() -> None:
    """Start the import of torch, and run the command line."""
    global _status, _output
    trains = _trains()
    import signal

    from torchyard.core import redaction
    from torchyard.pipelines.streams import protect

    _output = protect(goes_on=trains)
    if trains:  # whose terminal is closed
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
            signal.signal(signal.SIGINT, _interrupt)
    redaction.redact_output()
    redaction.redact_logs()
    try:
        if sys.argv[1:2] in (["run"], ["sweep"]) and "--help" not in sys.argv:
            # torch is a run's longest import: the worker process begins with it while this one
            # imports the command line and reads the configuration.
            from torchyard.pipelines.worker.process import shared_worker

            shared_worker()
        from torchyard.pipelines import cli

        cli.main()
        _status = 0
    except SystemExit as ended:
        _status = int(ended.code or 0)
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        _status = 130


def _interrupt(number: int, frame: object) -> None:
    """End what trains at the first Ctrl-C; others do not break in while its end is recorded."""
    global _interrupted
    now = time.monotonic()
    if _interrupted is None:
        _interrupted = now
        raise KeyboardInterrupt
    if now - _interrupted > ENDING_SECONDS:
        os._exit(130)


def leave() -> None:
    """Exit at once: Python would tear down thousands of modules first."""
    import errno

    sys.stdout.flush()
    # What a training is worth does not depend on its display, what a table is worth does.
    error = _output.error if _output else None
    lost = error is not None and error.errno != errno.EPIPE and not _trains()
    sys.stderr.flush()
    os._exit(_status or int(lost))


def _trains() -> bool:
    return sys.argv[1:2] in (["run"], ["sweep"], ["resume"])


if __name__ == "__main__":
    main()
