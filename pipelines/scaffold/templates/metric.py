"""The metric `new_thing`: mistakes that the network was sure of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Metric, MetricParams, Register, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class NewThing(MetricParams):
    """Share of samples that are predicted wrong with confidence."""

    lower_is_better = True  # where train.monitor names it

    confidence: float = Field(0.9, ge=0, le=1, description="probability of a confident prediction")

    def build(self, classes: Sequence[str]) -> Metric:
        """Make a callable (logits N x K, true class indices N) -> a number, or some by name."""
        least = self.confidence

        def confident_mistakes(
            logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
        ) -> float:
            from torchyard import Predictions

            made = Predictions(logits, targets)
            wrong = (made.predicted != targets) & (made.confidence >= least)
            return float(wrong.mean())

        return confident_mistakes


@hookimpl
def register_metrics(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
