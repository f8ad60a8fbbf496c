"""Prefect's engine for a scheduled run, in a process that is ready if there is one; a program.

python -P -m torchyard.pipelines.services.standby.engine

A Prefect worker starts a run some seconds before its time, and the engine waits for that. So all
that takes long, and depends on nothing that may change until then, is done before it waits.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import warnings

from torchyard.pipelines.services.standby.client import hand_over


def run() -> None:
    """Start the run's torch worker, import its flow, open its store, then be Prefect's engine."""
    with contextlib.suppress(Exception):  # the flow meets it again, and Prefect is told
        from torchyard.pipelines.worker.process import shared_worker

        shared_worker()
        from torchyard.core.tracking.location.address import database_of
        from torchyard.core.tracking.store import open_existing, tracking_uri
        from torchyard.pipelines.flow import pipeline  # noqa: F401
        from torchyard.pipelines.flow.recording.start import load_libraries

        load_libraries()
        if database_of(store := tracking_uri()):  # a server may be away, and is asked by the flow
            open_existing(store)
    # The flow has imported the module that is run now as a program.
    warnings.filterwarnings("ignore", "'prefect.engine' found in sys.modules", RuntimeWarning)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    status = hand_over("engine")
    if status is not None:
        os._exit(status)
    run()
