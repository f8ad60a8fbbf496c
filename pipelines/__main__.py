"""The process of the `torchyard` command: how it starts and ends, around the command line."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

_status = 1  # also of an unexpected error, which ends with a traceback


def main() -> None:
    """Start the import of torch, run the command line, and exit at once."""
    global _status
    # Registered first, so called last: Prefect has sent its last events by then.
    atexit.register(_leave)
    try:
        if sys.argv[1:2] == ["run"] and "--help" not in sys.argv:
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


def _leave() -> None:
    """Exit at once: Python would tear down thousands of modules first."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_status)


if __name__ == "__main__":
    main()
