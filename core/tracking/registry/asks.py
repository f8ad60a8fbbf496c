"""How often the test samples of a registered model were asked, in tags of the model.

Whoever compares often enough finds a difference by chance; a gate asks for more, the more often
that was done (`GateParams.with_ask`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchyard.core.formatting import natural

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ASKED = "torchyard.asked"  # tag of a model, followed by test set, champion and run: asks it counts
SHOWN_DIGEST = 12  # characters of a digest that tell test sets apart


def asks(client: MlflowClient, model: str) -> dict[str, int]:
    """How often each test set was asked for a registered model, by the digest's beginning."""
    counts: dict[str, int] = {}
    for key, value in client.get_registered_model(model).tags.items():
        if key.startswith(f"{ASKED}.") and (count := natural(value)) is not None:
            digest = key.removeprefix(f"{ASKED}.").partition(".")[0]
            counts[digest] = counts.get(digest, 0) + count
    return counts


def count_ask(
    client: MlflowClient, champion: ModelVersion, run: Run, digest: str, chosen_among: int
) -> int:
    """Note that a run is judged against a champion on test samples; returns how often that was so.

    Each pair has a tag of its own, written before they are counted: of two runs that end at once,
    on any machines, neither is lost, and asked again the same pair counts once.
    """
    digest = digest[:SHOWN_DIGEST]
    key = f"{ASKED}.{digest}.{champion.version}.{run.info.run_id}"
    client.set_registered_model_tag(champion.name, key, str(chosen_among))
    return asks(client, champion.name)[digest]
