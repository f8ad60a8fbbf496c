"""A child process of the same Python, which finds the same modules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
