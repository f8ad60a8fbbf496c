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
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from torchyard.core.data.files import cache_folder, private_folder
from torchyard.core.errors import UserError
from torchyard.core.training.parallel.strategy import Strategy

T = TypeVar("T")

TURN_SECONDS = 0.1
POLL_SECONDS = 0.001
# How long another's turn may last, in lengths of this training's own last one, and ALONG_SECONDS at
# most, as this one may have been stopped, too. Who has the turn may have been stopped, or its steps
# may take much longer; then both train at once.
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
        self._end = time.monotonic()

    def take(self) -> None:
        """Have the turn: at once while it lasts, else behind whoever waits for it."""
        now = time.monotonic()
        if now < self._end:
            return
        try:
            length = self._next(min(PATIENCE * (TURN_SECONDS + now - self._end), ALONG_SECONDS))
        except OSError:  # a turn that does not end, or a disk that ran out of locks
            length = ALONG_SECONDS
        self._end = time.monotonic() + length

    def close(self) -> None:
        """Leave."""
        with suppress(OSError):
            fcntl.flock(self._turn, fcntl.LOCK_UN)  # a process forked meanwhile has it open, too
        self._turn.close()
        self._queue.close()

    def _next(self, patience: float) -> float:
        """Wait for the turn; returns for how many seconds it is.

        Raises:
            TimeoutError: somebody else has it for good, or nearly.
            OSError: the disk has no locks any more.
        """
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        try:
            # Who waits for the turn is the queue's head until it has it: who had it comes after.
            self._lock(self._queue, patience)
            last = self._lock(self._turn, patience)
            os.utime(self._turn.fileno())
            # As long as one of longer steps, but less: two would make each other's longer.
            return max(TURN_SECONDS, 0.9 * last)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)

    def _lock(self, file: BinaryIO, patience: float) -> float:
        """Lock a file; returns for how long another's last turn was waited for."""
        turn, since = 0, time.monotonic()
        while True:
            now = time.monotonic()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return now - since
            except BlockingIOError:
                before, turn = turn, os.fstat(self._turn.fileno()).st_mtime_ns
                if turn != before:
                    since = now
                elif now > since + patience:
                    raise TimeoutError from None
                time.sleep(POLL_SECONDS)


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
