"""CMA-ES (Hansen, arXiv:1604.00772) for Optuna, by the package `cmaes`, without a state of its own.

Optuna's own sampler keeps its optimizer as a pickle in the study's journal. This one makes the
optimizer anew from the trials that were told: what they do to it is the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from torchyard.core.study.space import Domain, Range

SIGMA = 1 / 6  # of the space, as of Optuna's sampler; it begins in the middle


class CmaEs(BaseSampler):
    """Draws the numbers of a space where those of good trials were; choices at random.

    Args:
        domains: the space, by settings.
        seed: of what is drawn for the next trial.
    """

    def __init__(self, domains: Mapping[str, Domain], seed: int) -> None:
        self._ranges = {
            key: each
            for key, each in domains.items()
            if isinstance(each, Range) and each.low < each.high
        }
        self._seed, self._independent = seed, RandomSampler(seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The numbers of the space."""
        return {
            key: IntDistribution(int(each.low), int(each.high), log=each.log)
            if each.whole
            else FloatDistribution(each.low, each.high, log=each.log)
            for key, each in self._ranges.items()
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The numbers of the next trial; every generation is of trials in the order of their end.

        Trials that run at a time may belong to an earlier generation than they are told with.
        """
        from cmaes import CMA

        count = len(self._ranges)
        if not count:
            return {}
        optimizer = CMA(
            mean=np.full(count, 0.5),
            sigma=SIGMA,
            bounds=np.array([[0.0, 1.0]] * count),
            n_max_resampling=10 * count,
            seed=self._seed,
        )
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        told = [
            (self._position(each.params), sign * each.value)
            for each in sorted(
                study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)),
                key=lambda each: (each.datetime_complete, each.number),
            )
            if each.value is not None
        ]
        size = optimizer.population_size
        for first in range(0, len(told) - size + 1, size):
            optimizer.tell(told[first : first + size])
        return {
            key: _value(each, part)
            for (key, each), part in zip(self._ranges.items(), optimizer.ask(), strict=True)
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """One of the choices."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _position(self, values: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Where the values of a trial are, between 0 and 1."""
        return np.array([_part(each, values[key]) for key, each in self._ranges.items()])


def _ends(domain: Range) -> tuple[float, float]:
    """The ends between which it is even; of integers, as wide at the ends as between them."""
    half = 0.5 if domain.whole else 0.0
    low, high = domain.low - half, domain.high + half
    return (math.log(low), math.log(high)) if domain.log else (low, high)


def _part(domain: Range, value: float) -> float:
    low, high = _ends(domain)
    return ((math.log(value) if domain.log else value) - low) / (high - low)


def _value(domain: Range, part: float) -> float:
    low, high = _ends(domain)
    value = low + float(part) * (high - low)
    value = math.exp(value) if domain.log else value
    value = round(value) if domain.whole else value
    return min(max(value, domain.low), domain.high)
