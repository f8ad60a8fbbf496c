"""Promotion while `torchyard up` serves a local record: MLflow's webhooks fire."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from tests.pipelines.services.sandbox import Sandbox
from tests.production import webhooks


@pytest.mark.long
@pytest.mark.timeout(600)
def test_promotion_and_rollback_are_told_to_whoever_asked(sandbox: Sandbox) -> None:
    sandbox.environment |= webhooks.SETTINGS
    sandbox.torchyard("up")
    with webhooks.receiver() as told:
        server = MlflowClient(sandbox.services()["MLflow"]["address"])
        server.create_webhook("told", told.address, [webhooks.CHAMPION_MOVED])
        for epochs in (1, 2):
            settings = ("model=mlp", f"train.epochs={epochs}", "promote={model: d, gates: []}")
            sandbox.torchyard("run", "digits", *settings)
        assert told.versions(2) == ["1", "2"]
        sandbox.torchyard("rollback", "d")
        assert told.versions(3) == ["1", "2", "1"]
        sandbox.torchyard("promote", "latest", "model=e", "gates=[]")
        assert told.versions(4) == ["1", "2", "1", "1"]
