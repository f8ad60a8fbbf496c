"""The promotion of a run's model: judged by its gates, compared with the champion before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import StoreUnavailableError
from torchyard.core.tracking.queries.lookup import ACCURACY
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.registry.champions import Judged, promote
from torchyard.core.tracking.store import if_there, open_store, tracking_uri
from torchyard.pipelines.services.manager import registry_server
from torchyard.pipelines.worker.judging import judge_in_worker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def judge(record: RunRecord, resolved: ResolvedConfig) -> tuple[Judged, float | None]:
    """Let the gates judge what the run has recorded, and promote it if all pass.

    Returns:
        How that ended, and how much more accurate it is than the champion before.

    Raises:
        StoreUnavailableError: MLflow does not have all of the run yet.
    """
    chosen = resolved.config.promote
    assert chosen is not None
    if not record.sync():
        raise StoreUnavailableError(
            f"{record.name} is not judged: MLflow does not answer. Once it does, "
            f"`torchyard resume {record.run_id}` judges it."
        )
    client = open_store(tracking_uri())
    run = client.get_run(record.run_id)
    judge = judge_in_worker(chosen.gate_seconds)
    server = registry_server(client.tracking_uri)
    judged = promote(client, run, chosen.model, resolved.named_gates, judge, server=server)
    return judged, accuracy_gained(client, run, judged)


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
