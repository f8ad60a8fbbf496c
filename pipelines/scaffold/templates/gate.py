"""The gate `new_thing`: not too sure of what it gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Gate, GateParams, Register, Verdict, hookimpl

if TYPE_CHECKING:
    from torchyard.core.data.predictions import PredictionTable


class NewThing(GateParams):
    """Few wrong predictions that the model is sure of."""

    most: float = Field(0.05, ge=0, le=1, description="the greatest share of the test samples")
    sure: float = Field(0.9, ge=0, le=1, description="from this probability on it is sure")

    def build(self) -> Gate:
        """Make a callable (candidate, champion or None) -> Verdict.

        Each is the table of a run's predictions: of N samples the logits N x K, the true and
        the predicted class indices, the probabilities; the class names; the data set.
        """
        most, sure = self.most, self.sure

        def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
            made = candidate.predictions
            wrong = (made.predicted != made.targets) & (made.confidence >= sure)
            share = float(wrong.mean())
            reason = f"{share:.2%} are wrong and sure, at most {most:.2%} may be"
            return Verdict(share <= most, reason, {"wrong_and_sure": share})

        return judge


@hookimpl
def register_gates(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
