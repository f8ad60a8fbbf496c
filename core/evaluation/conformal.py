"""Sets of classes that hold the true one as often as is asked: split conformal prediction.

After Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), with the scores
of Romano, Sesia and Candès, "Classification with Valid and Adaptive Coverage" (2020), without
their random part: a class's score is the probability of all that are more probable. The most
probable class has 0, so that no set is empty.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.files import written
from torchyard.core.errors import RunError
from torchyard.core.evaluation.confidence import at_temperature, calibration, fitted_temperature

if TYPE_CHECKING:
    from torchyard.core.data.predictions import Predictions

CONFIDENCE_FILE = "confidence.json"  # an artifact of each run with a validation split
DIGITS = 6  # of a score
ROUNDING = 10**-DIGITS  # other kernels and batches round a probability otherwise


@dataclass(frozen=True)
class Confidence:
    """What a validation split says of a network's probabilities.

    Attributes:
        scores: of its samples' true classes, in ascending order.
        temperature: what the logits are divided by; None: they are not.
        error, error_before: the calibration error of the test split, with the temperature and
            without; before is None where there is no temperature.
    """

    scores: tuple[float, ...]
    temperature: float | None = None
    error: float = math.nan
    error_before: float | None = None

    @classmethod
    def fit(
        cls, validation: Predictions, test: Predictions, *, temperature: bool
    ) -> tuple[Confidence, Predictions]:
        """Fit on the validation; returns it, and the predictions of the test as it has them."""
        before = calibration(test).error
        fitted = fitted_temperature(validation) if temperature else None
        if fitted is not None:
            validation, test = (at_temperature(each, fitted) for each in (validation, test))
        scores = np.sort(true_scores(validation))
        up = np.ceil(scores / ROUNDING) * ROUNDING
        kept = tuple(round(float(score), DIGITS) for score in up)
        after = calibration(test).error
        return cls(kept, fitted, after, before if temperature else None), test

    @property
    def metrics(self) -> dict[str, float]:
        """Its numbers, as a run records them."""
        named = {
            "test/calibration_error": self.error,
            "test/calibration_error_before": self.error_before,
            "calibration/temperature": self.temperature,
        }
        return {name: value for name, value in named.items() if value is not None}

    def sets(
        self, probabilities: npt.NDArray[np.float32], coverage: float
    ) -> npt.NDArray[np.bool_]:
        """Which classes are in each sample's set, N x K.

        Of samples drawn as those of the validation were, the sets hold the true class with a
        probability of at least `coverage`, over samples and validation splits.

        Args:
            probabilities: N x K.
            coverage: between 0 and 1.
        """
        # The (n + 1) coverage-th smallest: the sample itself is as likely to be any of n + 1.
        rank = math.ceil((len(self.scores) + 1) * coverage - 1e-9)
        if rank > len(self.scores):  # so few samples cannot say
            return np.ones(probabilities.shape, np.bool_)
        limit = self.scores[max(rank, 1) - 1]
        within: npt.NDArray[np.bool_] = class_scores(probabilities) <= limit + ROUNDING
        return within

    def write(self, path: Path) -> None:
        """Write it as JSON; RunError if it cannot be written."""
        with written(path, "The calibration") as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Confidence:
        """Read what `write` wrote.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return cls(**found | {"scores": tuple(map(float, found["scores"]))})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error}") from error


def class_scores(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each class the probability of all that are more probable, N x K; of equals the first is.

    Args:
        probabilities: N x K.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
    before = np.cumsum(ordered, axis=1) - ordered
    before[:, 0] = 0
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def true_scores(predictions: Predictions) -> npt.NDArray[np.float64]:
    """The scores of the true classes, N."""
    scores = class_scores(predictions.probabilities)
    return np.take_along_axis(scores, predictions.targets[:, None], axis=1)[:, 0]
