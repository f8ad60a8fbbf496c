"""Optuna's part of a study: which values a trial gets, which trial is pruned, which is the best.

What Optuna knows is a journal in the study's folder, one line of JSON a change: whoever opens the
folder again goes on where the process before was killed.
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from torchyard.core.study.plan import StudyPlan
from torchyard.core.study.space import Choices, Scalar
from torchyard.pipelines.study.cmaes import CmaEs

JOURNAL = "study.jsonl"  # in the folder of the study's run
PRUNED = "pruned after epoch"  # what a trial is noted with

optuna.logging.set_verbosity(optuna.logging.ERROR)
# A trial that was resumed reports an epoch again, with the value that it had.
warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)


@dataclass(frozen=True)
class Finished:
    """A trial that has ended.

    Attributes:
        state: how.
        value: of the study's figure; None for one that failed.
        values: of the space.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    values: Mapping[str, Any]


class Search:
    """A study in Optuna, in a folder that this process alone writes to.

    What a trial gets is a function of the seed, its number and the trials that were told before:
    of nothing that is lost when the process dies. With the samplers that do not look at the
    results, it is the same with any number of trials at a time.

    Args:
        plan: the study.
        folder: for the journal.
        seed: of the sampler.
        epochs: of the longest trial, for hyperband.

    Attributes:
        epochs: as given.
    """

    def __init__(self, plan: StudyPlan, folder: Path, seed: int, epochs: int) -> None:
        journal = folder / JOURNAL
        # The lock of a process that was killed: this one owns the folder.
        for left in folder.glob(f"{JOURNAL}.lock*"):
            left.unlink(missing_ok=True)
        _cut_torn_line(journal)
        self._open(plan, journal, seed, epochs)

    @classmethod
    def joined(cls, plan: StudyPlan, folder: Path, seed: int, epochs: int) -> Search:
        """The search of a process that runs some of the trials; another one owns the folder."""
        search = cls.__new__(cls)
        search._open(plan, folder / JOURNAL, seed, epochs)
        return search

    def _open(self, plan: StudyPlan, journal: Path, seed: int, epochs: int) -> None:
        self._plan, self._seed, self.epochs = plan, seed, epochs
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=plan.name,
            direction="maximize" if plan.settings.maximize else "minimize",
            pruner=_pruner(plan, epochs),
            load_if_exists=True,
        )
        self._calling = threading.RLock()
        self._trials: dict[int, Trial] = {}

    def unfinished(self) -> list[int]:
        """The trials that were under way when the process before ended."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [found.number for found in running]

    @property
    def asked(self) -> int:
        """How many trials there are, in any state."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> int:
        """Begin the next trial; returns its number, counted from 0."""
        with self._calling:
            self.study.sampler = self._sampler("")
            trial = self.study.ask()
            self._trials[trial.number] = trial
            return trial.number

    def values(self, number: int) -> dict[str, Any]:
        """The values that a trial has, or gets now."""
        with self._calling:
            trial, labels = self._trial(number), {}
            for key, domain in self._plan.space.domains.items():
                self.study.sampler = self._sampler(f"{number} {key}")
                if isinstance(domain, Choices):
                    labels[key] = trial.suggest_categorical(key, domain.labels)
                elif domain.whole:
                    low, high = int(domain.low), int(domain.high)
                    labels[key] = trial.suggest_int(key, low, high, log=domain.log)
                else:
                    labels[key] = trial.suggest_float(key, domain.low, domain.high, log=domain.log)
            return self._plan.space.values(labels)

    def report(self, number: int, epoch: int, value: float, *, last: bool = False) -> bool:
        """Note a trial's figure after an epoch, counted from 1; True if the trial is pruned.

        Args:
            last: whether there is no other epoch, so that nothing is left to prune.
        """
        if not math.isfinite(value):
            return False
        with self._calling:
            trial = self._trial(number)
            trial.report(value, epoch)
            if last or not trial.should_prune():
                return False
            trial.set_user_attr(PRUNED, epoch)  # asked again, successive halving promotes it
            return True

    def pruned_after(self, number: int) -> int | None:
        """The epoch after which a trial was to be pruned, also by a process before this one."""
        with self._calling:
            # From the journal: another process may have noted it.
            found = self.study.get_trials(deepcopy=False)[number]
            pruned: int | None = found.user_attrs.get(PRUNED)
            return pruned

    def is_best(self, number: int, value: float) -> bool:
        """Whether a trial with that value would be the best of those that are complete."""
        best = self.best()
        if best is None or best.value is None:
            return True
        sign = -1 if self._plan.settings.maximize else 1
        return (sign * value, number) < (sign * best.value, best.number)

    def tell(
        self, number: int, state: Literal["complete", "pruned", "failed"], value: float | None
    ) -> None:
        """End a trial."""
        states = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        with self._calling:
            self.study.sampler = RandomSampler()  # a grid's would stop Optuna's own loop
            told = value if state == "complete" else None
            self.study.tell(self._trial(number), told, states[state])
            del self._trials[number]

    def _trial(self, number: int) -> Trial:
        """A trial under way, which this process or one before it or beside it began."""
        if number not in self._trials:
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            [found] = [each for each in running if each.number == number]
            self.study.sampler = self._sampler("")
            self._trials[number] = Trial(self.study, found._trial_id)
        return self._trials[number]

    def best(self) -> Finished | None:
        """The best of the trials that are complete."""
        complete = [trial for trial in self.finished() if trial.state == "complete"]
        sign = -1 if self._plan.settings.maximize else 1
        return min(
            complete, key=lambda each: (sign * (each.value or 0.0), each.number), default=None
        )

    def finished(self) -> list[Finished]:
        """All trials that have ended, by number."""
        names: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }
        with self._calling:
            found = self.study.get_trials(deepcopy=False, states=tuple(names))
        return [
            Finished(each.number, names[each.state], each.value, self._values_of(each))
            for each in found
        ]

    def _values_of(self, found: FrozenTrial) -> dict[str, Any]:
        labels: dict[str, Scalar] = found.params
        if set(labels) != set(self._plan.space.domains):  # it failed before it had all
            return dict(labels)
        return self._plan.space.values(labels)

    def _sampler(self, purpose: str) -> BaseSampler:
        """A new sampler: none has a state that a resumed study would lack."""
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {purpose}".encode()).digest()[:4])
        settings = self._plan.settings
        if settings.sampler == "grid":
            domains = self._plan.space.domains
            # One seed for all: it is the order of the grid's points.
            return GridSampler(
                {key: list(each.grid or ()) for key, each in domains.items()}, self._seed
            )
        if settings.sampler == "random":
            return RandomSampler(seed)
        if settings.sampler == "cmaes":
            return CmaEs(self._plan.space.domains, seed)
        return TPESampler(seed=seed, constant_liar=settings.workers > 1)


def _pruner(plan: StudyPlan, epochs: int) -> optuna.pruners.BasePruner:
    if plan.settings.pruner == "median":
        return optuna.pruners.MedianPruner()
    if plan.settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)
    return optuna.pruners.NopPruner()


def _cut_torn_line(journal: Path) -> None:
    """Remove the line that a killed process left unfinished: Optuna appends behind it."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
