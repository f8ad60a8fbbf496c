"""What a finished run comes to: what its flow returns, and the line that Prefect shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchyard.core.formatting import percent, points
from torchyard.core.tracking.queries.lookup import ACCURACY
from torchyard.core.tracking.registry.champions import Judged
from torchyard.core.tracking.store import if_there

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


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


def in_short(judged: Judged) -> str:
    """How a promotion ended, in a few words."""
    if judged.version is not None:
        return f"promoted as v{judged.version}"
    return f"refused by {', '.join(name for name, each in judged.verdicts if not each.passed)}"


def accuracy_gained(client: MlflowClient, run: Run, judged: Judged) -> float | None:
    """How much more of the test split a run has right than the champion until then, 0 to 1.

    None where there was no champion, or its data were others.
    """
    if judged.before is None:
        return None
    version = if_there(client.get_model_version, judged.model, str(judged.before))
    before = if_there(client.get_run, str(version.run_id)) if version else None
    if before is None or not _data(run) & _data(before):
        return None
    own, other = (each.data.metrics.get(ACCURACY) for each in (run, before))
    return None if own is None or other is None else own - other


def _data(run: Run) -> set[str]:
    """The digests of the data that a run was trained and tested on."""
    return {each.dataset.digest for each in run.inputs.dataset_inputs} if run.inputs else set()
