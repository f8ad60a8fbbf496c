"""The journal of a training: its figures, on disk before the checkpoint that is beyond them.

Whoever takes a killed run up again finds here what MLflow was never told. A file that a
process has written stays written when the process is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from torchyard.core.training.events import Event, Figures, as_plain, from_plain

FILE = "journal.jsonl"


@contextmanager
def kept(folder: Path, emit: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Give an `emit` that writes every figure to the folder's journal before it tells it."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # the last line may have been cut short

        def tell(event: Event) -> None:
            if isinstance(event, get_args(Figures)):
                file.write(json.dumps(as_plain(event)) + "\n")
                file.flush()
            emit(event)

        yield tell


def read(folder: Path) -> Iterator[Event]:
    """The figures, in the order they were written; none without a file."""
    try:
        lines = (folder / FILE).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = from_plain(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue  # empty, or cut short
        yield event
