"""What a finished run comes to: what its flow returns, and the line that Prefect shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchyard.core.formatting import percent, points

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Outcome:
    """What a finished run returns.

    Attributes:
        run_id, name, url: of the MLflow run.
        accuracy: on the test split, 0 to 1.
        images: test samples.
        per_class: one row per class: class, images, correct, accuracy, precision, f1.
        promotion: how its promotion ended, "promoted as v3" or "refused by beats_champion";
            None where none was asked for.
        gained: accuracy, less that of the champion before on the same data; None without one.
    """

    run_id: str
    name: str
    url: str
    accuracy: float
    images: int
    per_class: list[dict[str, Any]]
    promotion: str | None = None
    gained: float | None = None

    @property
    def line(self) -> str:
        """The outcome in a line: `97.5 % (+0.3), promoted as v3`."""
        right = percent(self.accuracy)
        if self.promotion is None:
            return f"{right} of {self.images:,} test samples"
        gain = "" if self.gained is None else f" ({points(self.gained)})"
        return f"{right}{gain}, {self.promotion}"
