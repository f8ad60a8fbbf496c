"""A plugin that puts its secret into everything it says, in a real run."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PLUGIN = '''
"""A model and a gate that tell what they know."""
import logging
import sys

from torchyard import GateParams, ModelParams, Verdict, hookimpl


class Told(Exception):
    """An error whose text is not in its arguments."""

    def __init__(self, secret):
        super().__init__()
        self.secret = secret

    def __repr__(self):
        return f"Told({self.secret})"

    def __str__(self):
        return f"cannot log in with {self.secret}"


class Talkative(ModelParams):
    """A linear network that prints and logs its token."""

    hub_token: str = ""
    raises: bool = False

    def build(self, input_shape, num_classes):
        from torch import nn

        token, raises = self.hub_token, self.raises

        class Network(nn.Sequential):
            def forward(self, samples):
                if self.training and samples.device.type != "meta":
                    print("printed", token, flush=True)
                    print("printed", token, file=sys.stderr, flush=True)
                    logging.getLogger("torchyard.mine").warning("logged %s", token)
                    if raises and len(samples) > 2:  # of a batch, not of the step that is tried
                        raise Told(token) from ValueError(token)
                return super().forward(samples)

        return Network(nn.Flatten(), nn.Linear(1024, num_classes))


class Indiscreet(GateParams):
    """A gate that refuses with its token."""

    api_key: str = ""
    raises: bool = True

    def build(self):
        def judge(candidate, champion):
            if self.raises:
                raise Told(self.api_key)
            return Verdict(False, f"refused by {self.api_key}")

        return judge


@hookimpl
def register_models(register):
    register("talkative", Talkative)


@hookimpl
def register_gates(register):
    register("indiscreet", Indiscreet)
'''
SECRET = "hunter2hunter2"


def everything(workspace: Any, client: Any, run: Any) -> str:
    """All that is kept of a run: in MLflow, on disk, in Prefect's database."""
    kept = [str(run.data.to_dictionary())]
    folders = [Path(client.download_artifacts(run.info.run_id, ""))]
    folders += [
        workspace.folder / "mlruns" / "runs" / run.info.run_id,
        workspace.folder / "prefect",
    ]
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                kept.append(file.read_bytes().decode("utf-8", "replace"))
    return "\n".join(kept)


@pytest.mark.slow
def test_a_token_is_nowhere_in_a_run_that_fails_or_is_refused(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:

    from torchyard.core.errors import RunError

    monkeypatch.setenv("HUB_TOKEN", SECRET)
    settings = [
        *("model=talkative", "model.hub_token=env:HUB_TOKEN", "train.epochs=1"),
        *("train.max_steps=2", "optimizer=sgd"),
    ]
    gates = "promote={model: told, gates: [{name: indiscreet, api_key: 'env:HUB_TOKEN'}]}"
    printed = SimpleNamespace(text="")
    with workspace.plugin_file("talkative", PLUGIN):
        with pytest.raises(RunError) as failure:
            workspace.invoke("run", "digits", *settings, "model.raises=true")
        printed.text += str(failure.value) + failure.value.details
        printed.text += workspace.invoke("run", "digits", *settings, gates)
    client = workspace.client()
    [experiment] = client.search_experiments(filter_string="name = 'torchyard'")
    refused, failed = client.search_runs([experiment.experiment_id], max_results=2)
    assert (refused.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert "Told: cannot log in with ***" in failed.data.tags["torchyard.reason"]
    assert refused.data.params["model.hub_token"] == "env:HUB_TOKEN"
    assert refused.data.params["promote.gates"].count("env:HUB_TOKEN") == 1
    assert "printed ***" in printed.text
    assert "it could not judge: Told: cannot log in with ***" in printed.text
    shown = printed.text + "".join(capfd.readouterr())
    for run in (refused, failed):
        kept = everything(workspace, client, run)
        assert "printed ***" in kept  # in Prefect's log
        shown += kept
    assert not re.findall(f".{{0,80}}{SECRET}.{{0,40}}", shown)
