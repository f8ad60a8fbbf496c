"""What a run's process does beside the run: it sends the log to MLflow and renews the lease."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.tracking.delivery import LogDelivery
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership import lease as leases
from torchyard.core.tracking.ownership.lease import Lease, TakenOverError
from torchyard.core.training.run_log import Line

logger = logging.getLogger(__name__)

RETRY_SECONDS = 15.0  # between two tries to reach an unavailable store


class LogSender:
    """Sends the log of a run, whoever asks for it; for the run's owner also in a thread.

    Args:
        uri: of the store.
        delivery: of the run's log.
        lease: of the run's owner; None in other processes.

    Attributes:
        unavailable: whether the store did not answer the last time.
        taken_over: set once another process owns the run.
        on_unavailable: called with a line when the store ceases to answer.
        on_taken_over: called by the thread, every few seconds, once another process owns the run.
    """

    def __init__(self, uri: str, delivery: LogDelivery, lease: Lease | None) -> None:
        self._uri, self._delivery, self._lease = uri, delivery, lease
        self._sending = threading.RLock()
        self._next_try = 0.0
        self._stopped = threading.Event()
        self.unavailable = False
        self.taken_over: TakenOverError | None = None
        self.on_unavailable: Callable[[str], None] = lambda line: None
        self.on_taken_over: Callable[[TakenOverError], None] = lambda error: None

    def start(self) -> None:
        """Begin the thread; it ends with `stop`, or when nobody has this object any more."""
        arguments = (weakref.ref(self), self._stopped)
        threading.Thread(target=_run, args=arguments, daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def send_if_due(self) -> None:
        """Renew the lease, and send what is pending, if it is time for that."""
        if self.taken_over is not None:
            self.on_taken_over(self.taken_over)
        elif time.monotonic() >= self._next_try:
            with suppress(RunError, UserError):  # the next call of the run's own raises it
                self.send(refused="keep")

    def check_owner(self) -> None:
        """Raise TakenOverError if the run is another process's by now, however short a time.

        What else the store answers is left to whoever sends something.
        """
        if self._lease is None or self.unavailable:
            return
        try:
            with store_errors(self._uri):
                self._lease.check()
        except TakenOverError as error:
            self.taken_over = error
            raise
        except (RunError, UserError):
            return

    def send(
        self, *lines: Line, first: bool = False, refused: Literal["keep", "drop"] = "drop"
    ) -> bool:
        """Send the log, and lines before or after it; False if the store is unavailable.

        Raises:
            TakenOverError, UserError, RunError: as `LogDelivery.deliver` raises them.
        """
        before = self._next_try
        with self._sending:
            if self.unavailable and self._next_try != before:
                return False  # another thread has waited for it just now
            try:
                with store_errors(self._uri):
                    if self._lease is not None:
                        self._lease.renew_if_due()
                    for line in lines if first else ():
                        self._delivery.send([line])
                    self._delivery.deliver(refused)
                    for line in () if first else lines:
                        self._delivery.send([line])
            except StoreUnavailableError as error:
                if not self.unavailable:
                    said = f"{error} Metrics and files wait on disk."
                    logger.warning("%s", said)
                    self.on_unavailable(said)
                self.unavailable = True
                self._next_try = time.monotonic() + RETRY_SECONDS
                return False
            except TakenOverError as error:
                self.taken_over = error
                raise
            self.unavailable = False
        return True


def _run(found: weakref.ref[LogSender], stopped: threading.Event) -> None:
    while not stopped.wait(leases.RENEW_SECONDS):
        sender = found()
        if sender is None:
            return
        sender.send_if_due()
        del sender
