"""The `torchyard` command: how its process begins and ends, around the command line."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

_status = 1  # also of an error that is nobody's but ours


def main() -> None:
    """Begin with torch's import, run `pipelines/commands/run.py`, and end at once."""
    global _status
    # The first that is registered is the last to be called: Prefect has sent its last events.
    atexit.register(_leave)
    try:
        if sys.argv[1:2] == ["run"] and "--help" not in sys.argv:
            # A run imports nothing longer than torch. That goes on in a process of its own while
            # this one imports the command line and reads the configuration, 0.3 s; if that is
            # wrong, it ends with this one.
            from torchyard.pipelines.worker.process import shared_worker

            shared_worker()
        from torchyard.pipelines.commands import run

        run.main()
        _status = 0
    except SystemExit as ended:
        _status = int(ended.code or 0)
        raise
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        _status = 130


def _leave() -> None:
    """End the process as it stands: to take its 4,000 modules apart takes 0.2 s."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_status)


if __name__ == "__main__":
    main()
