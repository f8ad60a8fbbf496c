"""The gate `new_thing`: few confident mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Gate, GateParams, Register, Verdict, hookimpl

if TYPE_CHECKING:
    from torchyard import PredictionTable


class NewThing(GateParams):
    """Few wrong predictions that the model is confident of."""

    most: float = Field(0.05, ge=0, le=1, description="the greatest share of the test samples")
    confidence: float = Field(0.9, ge=0, le=1, description="probability of a confident prediction")

    def build(self) -> Gate:
        """Make a callable (candidate, champion or None) -> Verdict.

        Each is the table of a run's predictions: logits N x K, true and predicted class
        indices, and probabilities of N samples; the class names; the data set.
        """
        most, confidence = self.most, self.confidence

        def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
            made = candidate.predictions
            wrong = (made.predicted != made.targets) & (made.confidence >= confidence)
            share = float(wrong.mean())
            reason = f"{share:.2%} are confident mistakes, at most {most:.2%} may be"
            return Verdict(share <= most, reason, {"confident_mistakes": share})

        return judge


@hookimpl
def register_gates(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
