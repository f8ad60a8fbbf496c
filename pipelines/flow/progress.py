"""How far a training is, as Prefect shows it: an artifact that is renewed while it goes on."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

from torchyard.core.formatting import coarse_duration
from torchyard.core.training.events import Progress

logger = logging.getLogger(__name__)

KEY = "training"  # of the artifact
SECONDS = 5.0  # between two reports: a training that is shorter has none


class ProgressReport:
    """Tells Prefect now and then where a training is; the training never waits for it.

    Args:
        epochs: how many it is to have.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._first: tuple[int, float] | None = None
        self._told = time.monotonic()
        self._artifact: UUID | None = None
        self._thread: threading.Thread | None = None

    def event(self, event: Progress) -> None:
        """Tell it, if it is time and the last report has arrived."""
        now = time.monotonic()
        if self._first is None:
            self._first = event.step, now
        on_its_way = self._thread is not None and self._thread.is_alive()
        if now - self._told < SECONDS or on_its_way or flow_run.id is None:
            return
        self._told = now
        done, seconds = event.step - self._first[0], now - self._first[1]
        text = f"epoch {event.epoch} of {self._epochs}"
        if done > 0:
            left = seconds / done * (event.total_steps - event.step)
            text += f", {coarse_duration(left)} left"
        share = 100 * event.step / event.total_steps
        # With this thread's task run, in which the artifact then stands.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=[self._tell, share, text], daemon=True
        )
        self._thread.start()

    def _tell(self, share: float, text: str) -> None:
        try:
            if self._artifact is None:
                made = create_progress_artifact(share, key=KEY, description=text)
                self._artifact = cast(UUID, made)  # outside of an event loop
            else:
                update_progress_artifact(self._artifact, share, description=text)
        except Exception as error:  # whatever Prefect does, the training goes on
            logger.debug("Prefect was not told that the training is at %s: %s", text, error)
