"""Where the figures go: a JSON file that is whole after each of them."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Report:
    """Figures in nested mappings, in a JSON file that is written anew with each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}

    def add(self, value: Any, *keys: str) -> None:
        """Keep a value under its keys, print it, write the file."""
        inner = self.figures
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        print(f"{time.strftime('%H:%M:%S')} {' / '.join(keys)}: {json.dumps(value)}", flush=True)
        write_json(self._path, self.figures)

    @contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """Whatever fails in the `with` is a figure, too, and the rest goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add(f"{type(error).__name__}: {error}"[:600], *keys, "error")


def write_json(path: Path, value: Any) -> None:
    """Write a file that is never half there."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    partial.replace(path)
