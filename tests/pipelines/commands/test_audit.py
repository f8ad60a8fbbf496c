"""`torchyard audit`, and runs that ask for an audit."""

import json

import pytest

from tests.pipelines.command_line import refused

PLUGIN = '''
"""Vectors of which some test samples were trained on."""
from torchyard import ArraySplit, DatasetParams, RawData, hookimpl


class Leaky(DatasetParams):
    """Two clouds, with five of the training vectors in the test split."""

    def build(self, downloads):
        import numpy as np

        labels = np.arange(120) % 2
        samples = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
        samples[:, 0] += 9 * labels
        labels[40] = 1 - labels[40]
        samples[100:105] = samples[:5]
        split = ArraySplit(samples[:100], labels[:100])
        return RawData(["low", "high"], split, ArraySplit(samples[100:], labels[100:]))


@hookimpl
def register_datasets(register):
    register("leaky", Leaky)
'''


@pytest.fixture(scope="module", autouse=True)
def plugins(workspace):
    with workspace.plugin_file("audited", PLUGIN):
        yield


def test_what_is_found_is_printed_and_recorded(workspace):

    found = json.loads(workspace.invoke("audit", "leaky", "--json"))
    assert found["counts"] == {"exact duplicate": 5, "label error": 1}
    assert found["leaked"] == {"train": 5, "test": 5}
    [doubted] = [each for each in found["findings"] if each["kind"] == "label error"]
    assert (doubted["index"], doubted["label"], doubted["other"]) == (40, "high", "low")
    printed = workspace.invoke("audit", "leaky")
    assert "5 of 20 test samples (25.0 %) are in the training split" in " ".join(printed.split())
    client = workspace.client()
    run = client.get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["audit/leaked_test"] == 5
    names = {each.path for each in client.list_artifacts(found["run_id"])}
    assert names == {"audit.html", "audit.parquet"}


def test_an_audit_is_no_run_of_a_model(workspace):
    before = workspace.invoke("runs")
    workspace.invoke("audit", "leaky")
    assert workspace.invoke("runs") == before


@pytest.mark.slow  # a run, and three trainings
def test_a_runs_own_model_judges_the_labels(workspace):
    run = workspace.invoke(
        "run", "digits", "dataset=leaky", "model=mlp", "train.epochs=8", "--quiet"
    ).strip()
    found = json.loads(workspace.invoke("audit", "--run", run, "--json"))
    doubted = [each["index"] for each in found["findings"] if each["kind"] == "label error"]
    assert doubted == [40]
    assert found["facts"]["labels"].startswith("by 3 trainings of mlp·adam·leaky #")


@pytest.mark.slow  # two runs
def test_a_run_reports_the_audit_and_trains_without_what_leaked(workspace):

    from torchyard.core.config.schema import RunConfig
    from torchyard.pipelines.flow.pipeline import train_pipeline

    client = workspace.client()
    settings = {"model": {"name": "linear"}, "train": {"epochs": 1}}
    gates = [{"name": "max_leaked", "threshold": 0.1}, {"name": "max_label_errors", "threshold": 1}]
    found = {}
    for exclude in (None, "audit"):
        outcome = train_pipeline(
            RunConfig(
                dataset={"name": "leaky", "exclude": exclude},
                promote={"model": f"audited-{exclude}", "gates": gates},
                **settings,
            )
        )
        found[exclude] = client.get_run(outcome.run_id).data
        names = {each.path for each in client.list_artifacts(outcome.run_id)}
        assert {"audit.html", "audit.parquet"} <= names
    leaky, clean = found[None], found["audit"]
    assert leaky.metrics["test/leaked"] == 0.25
    assert clean.metrics["test/leaked"] == 0
    assert leaky.metrics["test/label_errors"] == clean.metrics["test/label_errors"] == 0.01
    assert {"test/accuracy", "test/accuracy_without_leaked"} <= leaky.metrics.keys()
    assert leaky.tags["torchyard.promotion"] == "refused by max_leaked"
    assert clean.tags["torchyard.promotion"] == "version 1"
    assert clean.tags["excluded"] == "5 training samples, by the audit"
    assert (leaky.metrics["train/steps"], clean.metrics["train/steps"]) == (4, 3)


def test_what_cannot_be_audited_is_said_at_once(tmp_path):
    [said] = refused(tmp_path, "audit", "image_foldr", "path=photos")
    assert "Did you mean 'image_folder'?" in said
    [said] = refused(tmp_path, "audit", "digits", "image_sise=3")
    assert said.startswith("dataset.image_sise: unknown parameter of 'digits'.")
    [said] = refused(tmp_path, "run", "digits", "dataset.exclude=some")
    assert said.startswith("dataset.exclude: ")
