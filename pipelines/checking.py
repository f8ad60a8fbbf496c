"""Trying a configuration in the worker before any work: `check`, `run`, `schedule`, `deploy`."""

from __future__ import annotations

import functools
import json
from typing import Any

from core.config import RunConfig
from core.folders import cache_folder
from core.worker import shared_worker


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
