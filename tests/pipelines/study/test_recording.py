"""A study's own run: whether it may begin."""

import pytest

from tests.pipelines.worker.conftest import PRESETS
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan
from torchyard.core.tracking.queries.runs import STUDY
from torchyard.pipelines.study.recording import DIGEST, start_study


def test_of_two_that_begin_one_study_at_once_one_does(recorded, monkeypatch):
    """Both found none of that name; the second one to make its run is refused."""
    plan = StudyPlan.read(
        "digits", ["optimizer.lr=log(1e-4,1e-1)"], {"name": "one"}, PRESETS, host()
    )
    client, run_id = recorded.client, recorded.ids["good"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    experiment = client.get_run(run_id).info.experiment_id
    before = client.search_runs([experiment])
    client.set_tag(run_id, STUDY, plan.name)
    client.set_tag(run_id, DIGEST, plan.digest)
    try:
        with pytest.raises(UserError, match="study 'one': another process has just begun it"):
            start_study(plan, "digits", None)
        assert len(client.search_runs([experiment])) == len(before)
    finally:
        client.delete_tag(run_id, STUDY)
        client.delete_tag(run_id, DIGEST)
