"""What a schedule does to an optimizer, without a training.

Two trainings with equal settings, but for their schedules, are equal for as long as the schedules
have given the optimizer the same settings, batch by batch. What a schedule is called or how it
is computed does not matter; numbers are compared exactly.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from typing import Any

import torch

# Settings that schedules add for themselves; no step of an optimizer depends on them.
_SCHEDULES_OWN = {"params", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}


class ScheduleReplay:
    """A schedule that is stepped alone, with an optimizer that is never.

    Args:
        optimizer: as new, of any parameters.
        scheduler: as new, of that optimizer; one that is stepped after each batch.

    Attributes:
        step: batches that the schedule is past.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self.step = 0
        self._digest = hashlib.sha256()

    def advance(self, step: int) -> str:
        """Go on to where so many batches are trained.

        Returns:
            sha256 of the settings that the optimizer had in all of these batches.
        """
        with warnings.catch_warnings():
            # That the optimizer was not stepped before the schedule.
            warnings.simplefilter("ignore", UserWarning)
            while self.step < step:
                self._digest.update(repr(self._effective()).encode())
                self._scheduler.step()
                self.step += 1
        return self._digest.hexdigest()

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The settings of the optimizer's groups that its next batch has."""
        return [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            for group in self._optimizer.param_groups
        ]

    def agrees_with(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer in training has these settings: some change their own."""
        given = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        return repr(given) == repr(self.settings)

    def hand_over(
        self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        """Bring the schedule of a training, and its optimizer's settings, to where this one is."""
        for group, settings in zip(optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        scheduler.load_state_dict(copy.deepcopy(self._scheduler.state_dict()))

    def _effective(self) -> list[list[tuple[str, Any]]]:
        return [
            sorted((key, value) for key, value in group.items() if key not in _SCHEDULES_OWN)
            for group in self._optimizer.param_groups
        ]
