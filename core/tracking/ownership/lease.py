"""A run's lease: what its process renews in the store, by which other machines see that it lives.

No clocks are compared: whoever wants the run watches whether the lease changes. The time that
stands in it is for people alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torchyard.core.errors import RunError, UserError
from torchyard.core.formatting import natural
from torchyard.core.tracking.ownership.process import PROCESS, described_owner
from torchyard.core.tracking.store import get_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEASE = "torchyard.lease"  # tag of a run: how often its process has renewed it, and when last
RENEW_SECONDS = 5.0
WATCH_SECONDS = 30.0  # six renewals, or two by a store that takes seconds to answer


class TakenOverError(RunError):
    """Another process trains the run by now: this one must record nothing more of it."""


class Lease:
    """The lease that this process has on a run.

    Args:
        client: of the store.
        run_id: of the run.
        process: this process, as the run's tag names it.
    """

    def __init__(self, client: MlflowClient, run_id: str, process: str) -> None:
        self._client, self._run_id, self._process = client, run_id, process
        self._renewals = 0
        self._next = 0.0

    def renew_if_due(self) -> None:
        """Renew it, unless that was done some seconds ago.

        Raises:
            TakenOverError: the run is another process's by now.
            MlflowException, OSError: the store does not answer.
        """
        if _uptime() >= self._next:
            self.check()
            self._renewals += 1
            self._client.set_tag(self._run_id, LEASE, lease_text(self._renewals))
            self._next = _uptime() + RENEW_SECONDS

    def check(self, run: Run | None = None) -> None:
        """Raise TakenOverError unless the run is this process's, as it was just read or is now."""
        run = run or get_run(self._client, self._run_id)
        if run.data.tags.get(PROCESS) != self._process:
            taken = described_owner(run.data.tags)
            raise TakenOverError(
                f"run {self._run_id} ({run.info.run_name}) was taken over by {taken}: this "
                "process stops, and records no more of it."
            )


def lease_text(renewals: int) -> str:
    """The tag of a lease that has been renewed so often, the last time now."""
    return f"{renewals} {time.time():.0f}"


def _uptime() -> float:
    """Seconds, those counted in which the machine was suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def is_renewed(client: MlflowClient, run: Run) -> bool | None:
    """Whether a RUNNING run's lease changes within WATCH_SECONDS; None if not: who knows why."""
    deadline = time.monotonic() + WATCH_SECONDS
    before = run.data.tags.get(LEASE)
    while before is not None and time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if get_run(client, run.info.run_id).data.tags.get(LEASE) != before:
            return True
    return None


def silent_seconds(run: Run) -> float:
    """How long ago the lease was renewed, by the clocks of two machines; 0 if that is not known."""
    renewed = natural(run.data.tags.get(LEASE, "").partition(" ")[2])
    return 0.0 if renewed is None else max(0.0, time.time() - renewed)


def check_resumable(run: Run, alive: bool | None, *, force: bool = False) -> None:
    """Refuse to resume a run that trains, or may.

    Args:
        run: to be resumed.
        alive: what `owner_lives` or `is_renewed` says.
        force: whether one that may train is resumed all the same.

    Raises:
        UserError: its process lives; or that cannot be known, and it is not forced.
    """
    if run.info.status != "RUNNING" or alive is False:
        return
    named = f"run {run.info.run_id} ({run.info.run_name})"
    if alive:
        raise UserError(f"{named} is running, in {described_owner(run.data.tags)}.")
    if not force:
        raise UserError(
            f"{named} is not known to have ended: {described_owner(run.data.tags)} began it, and "
            "from here nothing is seen of that. If you know that it runs no more, add --force."
        )
