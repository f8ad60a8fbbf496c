"""Checkpoints at which trainings part: who comes second goes on from where the first one was.

A snapshot is a second name of the checkpoint file of a training, and beside it what that training
had recorded by then. While a training is on its way from one snapshot to the next, it holds a lock
of that next one: whoever needs it waits, and does not train the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from filelock import BaseFileLock, FileLock

from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.files import atomic_write, link_or_copy
from torchyard.core.training.events import EpochDone, Event, TrainingMetrics, as_plain, from_plain
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.prefixes.replay import ScheduleReplay
from torchyard.core.training.run_log import RunLog
from torchyard.core.training.state import TrainingState

_METRICS = {kind.__name__ for kind in get_args(TrainingMetrics)}


@dataclass(frozen=True)
class SharedEpochs:
    """What a training has in common with others of its study.

    Attributes:
        folder: of the snapshots.
        epochs: after which other trainings part from this one, or end, and the names of what
            they have in common until then.
    """

    folder: Path
    epochs: Mapping[int, str]

    @classmethod
    def parse(cls, plain: Mapping[str, Any] | None) -> SharedEpochs | None:
        """From plain values, as a stage is given them."""
        if plain is None:
            return None
        return cls(Path(plain["folder"]), {int(key): name for key, name in plain["epochs"].items()})


class Snapshots:
    """The snapshots on the way of one training.

    Args:
        shared: which there may be.
        execution: how the training is carried out: it shares nothing with one that is carried out
            otherwise.
        replay: of its schedule.
    """

    def __init__(self, shared: SharedEpochs, execution: str, replay: ScheduleReplay) -> None:
        self._shared, self._execution, self._replay = shared, execution, replay
        self._lock: BaseFileLock | None = None
        self._epoch = 0  # after which the training was at a snapshot last

    def __enter__(self) -> Snapshots:
        self._shared.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *raised: object) -> None:
        self._release()

    def begin(self, state: TrainingState, strategy: Strategy) -> list[Event]:
        """Have a new training be where another one has come that is the same until there.

        It is on its own schedule from there on. Waits for a training that is on its way there.

        Args:
            state: as new.
            strategy: of one process.

        Returns:
            What was recorded by then; [] where there is nothing to begin with.
        """
        found: list[Event] = []
        for epoch in sorted(self._shared.epochs):
            self._hold(epoch)
            if (events := self._events(epoch)) is None:
                break  # this one is the next to come there
            found, self._epoch = events, epoch
        else:
            self._release()
        if found:
            state.load(self._path(self._epoch, ".pt"), strategy)
            self._replay.advance(state.position.step)
            self._replay.hand_over(state.optimizer, state.scheduler)
        return found

    def keep(self, state: TrainingState, folder: Path) -> None:
        """Keep the training's last checkpoint, if others go on from it.

        Args:
            state: at the end of an epoch.
            folder: of the checkpoint, and of the training's log.
        """
        epoch, step = state.position.epoch, state.position.step
        if epoch <= self._epoch or epoch not in self._shared.epochs:
            return
        self._epoch, held, self._lock = epoch, self._lock, None
        self._replay.advance(step)
        if later := [each for each in self._shared.epochs if each > epoch]:
            self._hold(min(later), wait=False)  # before anybody else can come here
        if self._events(epoch) is None and self._replay.agrees_with(state.optimizer):
            events = recorded_events(folder, epoch, step)
            partial = self._path(epoch, ".partial")
            partial.unlink(missing_ok=True)
            link_or_copy(folder / LAST, partial)
            partial.replace(self._path(epoch, ".pt"))
            about = {"execution": self._execution, "events": [as_plain(each) for each in events]}
            with atomic_write(self._path(epoch, ".json")) as file:
                file.write(json.dumps(about).encode())
        if held is not None:
            held.release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _hold(self, epoch: int, *, wait: bool = True) -> None:
        """Hold the lock of a snapshot alone."""
        self._release()
        lock = FileLock(self._path(epoch, ".lock"), timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except TimeoutError:
            return
        self._lock = lock

    def _events(self, epoch: int) -> list[Event] | None:
        """What was recorded up to a snapshot; None where there is none that can be used."""
        try:
            about = json.loads(self._path(epoch, ".json").read_text())
        except (OSError, ValueError):
            return None
        if about["execution"] != self._execution:
            return None
        return [from_plain(each) for each in about["events"]]

    def _path(self, epoch: int, suffix: str) -> Path:
        return self._shared.folder / f"{self._shared.epochs[epoch]}{suffix}"


def recorded_events(folder: Path, epoch: int, step: int) -> list[Event]:
    """What the log of a training has of its first epochs and steps, each once, in order."""
    found: dict[tuple[str, int], Event] = {}
    for line in RunLog(folder).read():
        if line.kind not in _METRICS:
            continue
        event: Any = line.event
        place = event.epoch if isinstance(event, EpochDone) else event.step
        if place <= (epoch if isinstance(event, EpochDone) else step):
            found[line.kind, place] = event  # one that was trained again is the same
    return list(found.values())


def replayed(events: list[Event], emit: Callable[[Event], None], go_on: Callable[[], bool]) -> bool:
    """Report what was recorded before a snapshot; False if the training is not to go on there.

    Args:
        events: of the snapshot.
        emit: is told of each.
        go_on: asked after each epoch.
    """
    for event in events:
        emit(event)
        if isinstance(event, EpochDone) and not go_on():
            return False
    return True
