"""Prefect's engine for a scheduled run, in a process that is ready if there is one; a program."""

from __future__ import annotations

import os
import runpy

from torchyard.pipelines.services.standby.client import hand_over

if __name__ == "__main__":
    status = hand_over("engine")
    if status is not None:
        os._exit(status)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
