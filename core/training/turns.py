"""Trainings of one user that want all processors of a machine take turns on them.

Two of them at once wait at every operation for threads that have no processor: together they
train little more than half of what one trains alone, and in turn eight or nine tenths
(`benchmarks/reasons/processors.md`). Fewer threads would do as well, but they decide how sums are
rounded: equal configurations would no longer give equal weights.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from torchyard.core.data.files import cache_folder, private_folder
from torchyard.core.errors import UserError
from torchyard.core.training.parallel.strategy import Strategy

T = TypeVar("T")

TURN_SECONDS = 0.1
POLL_SECONDS = 0.001
# In lengths of the training's own last turn. Whoever has the turn may have been stopped, or its
# steps may take much longer; then both train at once.
PATIENCE = 10
ALONG_SECONDS = 10.0


def in_turn(batches: Iterable[T], device: torch.device, strategy: Strategy) -> Iterator[T]:
    """Give the batches, each when it is this process's turn on the processors it may use.

    A training whose threads leave room for another like it waits for nobody, nor does one on a
    GPU, or by several processes, which wait for each other. The turn ends with the batches, or
    with the process however that ends.
    """
    alone = device.type == "cpu" and strategy.world_size == 1
    turns = _turns() if alone and _wants_all() else None
    if turns is None:
        yield from batches
        return
    with closing(turns):
        for batch in batches:
            turns.take()
            yield batch


class Turns:
    """A place among those that take turns.

    Args:
        folder: has the two files whose locks are the turn and the head of the queue for it.
    """

    def __init__(self, folder: Path) -> None:
        # Hosts may share a cache folder.
        where = f"{socket.gethostname()}-{sum(1 << each for each in _processors()):x}"
        self._turn, self._queue = (
            (folder / f"{where}.{name}").open("ab") for name in ("turn", "queue")
        )
        fcntl.flock(self._turn, fcntl.LOCK_UN)  # not every disk has locks
        self._began = self._end = time.monotonic()

    def take(self) -> None:
        """Have the turn: at once while it lasts, else behind whoever waits for it."""
        now = time.monotonic()
        if now < self._end:
            return
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        last = now + PATIENCE * max(TURN_SECONDS, now - self._began)
        # Who waits for the turn is the queue's head until it has it: who had it comes after.
        taken = _locked(self._queue, last) and _locked(self._turn, last)
        fcntl.flock(self._queue, fcntl.LOCK_UN)
        self._began = time.monotonic()
        self._end = self._began + (TURN_SECONDS if taken else ALONG_SECONDS)

    def close(self) -> None:
        """Leave."""
        self._turn.close()
        self._queue.close()


def _locked(file: BinaryIO, last: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > last:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:  # a disk that ran out of locks ends no training
            return False
        else:
            return True


def _wants_all() -> bool:
    """Whether a second training with as many threads would not find a processor for each."""
    threads = torch.get_num_threads()
    return threads > 1 and len(_processors()) < 2 * threads


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _turns() -> Turns | None:
    """Where this user's trainings on this machine meet; None where they cannot."""
    try:
        return Turns(private_folder(cache_folder() / "turns"))
    except (OSError, UserError):
        return None
