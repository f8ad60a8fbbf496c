"""The journal of a training: its figures, on disk before the checkpoint that is beyond them.

Whoever takes a killed run up again finds here what MLflow was never told. A file that a
process has written stays written when the process is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

FILE = "journal.jsonl"
KINDS = ("RunningLoss", "EpochDone", "GradientNorms")


@contextmanager
def kept(folder: Path, emit: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Give an `emit` that writes every figure to the folder's journal before it tells it."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # the last line may have been cut short

        def tell(event: Any) -> None:
            if type(event).__name__ in KINDS:
                file.write(json.dumps([type(event).__name__, asdict(event)]) + "\n")
                file.flush()
            emit(event)

        yield tell


def read(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and fields of the events, in the order they were written; none without a file."""
    try:
        lines = (folder / FILE).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            name, values = json.loads(line)
        except ValueError:
            continue  # empty, or cut short
        yield name, values
