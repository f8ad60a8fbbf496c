"""Several seeds of one configuration: parent and children, killed in between and resumed."""

import json
import re

import numpy as np
import pytest

from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.seeds import over_seeds
from torchyard.core.tracking.queries.recorded import recorded_predictions

pytestmark = pytest.mark.slow

SETTINGS = ("digits", "train.epochs=1", "train.seed=3")


def children(client, parent):
    chosen = f"tags.`mlflow.parentRunId` = '{parent}'"
    found = client.search_runs(["1"], chosen, order_by=["attributes.start_time ASC"])
    return list(found)


@pytest.fixture(scope="module")
def printed(workspace):
    return workspace.invoke("run", *SETTINGS, "--seeds", "3")


@pytest.fixture(scope="module")
def parent(client, printed):
    return client.get_run(re.search(r"^MLflow run: .* ([0-9a-f]{32})$", printed, re.MULTILINE)[1])


def test_each_seed_is_a_run_below_one_parent(workspace, client, parent):
    runs = children(client, parent.info.run_id)
    assert [run.data.params["train.seed"] for run in runs] == ["3", "4", "5"]
    assert {run.info.status for run in (parent, *runs)} == {"FINISHED"}
    assert re.fullmatch(r"lenet·adam·digits, 3 seeds #\d+", parent.info.run_name)
    alone = client.get_run(workspace.invoke("run", *SETTINGS, "train.seed=4", "--quiet").strip())
    assert alone.data.tags["weights_digest"] == runs[1].data.tags["weights_digest"]


def test_the_parent_has_the_summary_and_a_page(workspace, client, parent, printed):
    runs = children(client, parent.info.run_id)
    tables = [recorded_predictions(client, run).predictions for run in runs]
    found = over_seeds(np.stack([each.predicted == each.targets for each in tables]))
    metrics = parent.data.metrics
    assert metrics["seeds/count"] == 3
    assert metrics["seeds/accuracy"] == pytest.approx(found.mean)
    assert metrics["seeds/accuracy_std"] == pytest.approx(found.spread)
    bounds = (metrics["seeds/accuracy_low"], metrics["seeds/accuracy_high"])
    assert bounds == pytest.approx(found.over_both)
    recalls = [run.data.metrics["test/recall/7"] for run in runs]
    assert metrics["seeds/recall/7"] == pytest.approx(np.mean(recalls))
    assert "test/accuracy" not in metrics  # it is no candidate for `best`
    assert f"{100 * found.mean:.1f}% of 359 test samples right, the mean of 3 seeds" in printed
    page = client.download_artifacts(parent.info.run_id, "report.html", str(workspace.folder))
    with open(page, encoding="utf-8") as file:  # noqa: PTH123
        text = file.read()
    assert text.count("Run it again") == 1
    for run in runs:
        assert run.info.run_name in text


def test_the_list_shows_mean_and_spread(workspace, parent):
    lines = workspace.invoke("runs", "--limit", "100").splitlines()
    [line] = [line for line in lines if parent.info.run_name in line]
    metrics = parent.data.metrics
    mean, spread = 100 * metrics["seeds/accuracy"], 100 * metrics["seeds/accuracy_std"]
    assert f"{mean:.1f}% ±{spread:.1f}" in line


FLAKY = '''
from pathlib import Path
from torchyard import ModelParams, hookimpl


class Flaky(ModelParams):
    """Fails where a file says so."""

    def build(self, input_shape, num_classes):
        import math
        import torch

        class Net(torch.nn.Sequential):
            def forward(self, x):
                if self.training and Path({file!r}).exists() and torch.initial_seed() == 1:
                    raise RuntimeError("the power is off")
                return super().forward(x)

        return Net(torch.nn.Flatten(), torch.nn.Linear(math.prod(input_shape), num_classes))


@hookimpl
def register_models(register):
    register("flaky", Flaky)
'''


def test_what_is_left_is_done_on_resume_and_what_has_finished_is_not_repeated(
    workspace, client, tmp_path
):
    trouble = tmp_path / "trouble"
    trouble.touch()
    words = ("run", "digits", "model=flaky", "train.epochs=1", "--seeds", "3")
    with workspace.plugin_file("flaky", FLAKY.format(file=str(trouble))):
        with pytest.raises((RunError, UserError), match="the power is off") as raised:
            workspace.invoke(*words)
        parent = re.search(
            r"flaky·adam·digits, 3 seeds #\d+  ([0-9a-f]{32})", str(raised.value.__notes__)
        )[1]
        assert client.get_run(parent).info.status == "FAILED"
        before = children(client, parent)
        assert [run.info.status for run in before] == ["FINISHED", "FAILED"]
        trouble.unlink()
        # The failed child is resumed by way of its parent.
        events = workspace.invoke("resume", before[1].info.run_id, "--json").splitlines()
        last = json.loads(events[-1])
    assert (last["event"], last["run_id"], last["seeds"]) == ("seeds", parent, 3)
    after = children(client, parent)
    assert [run.info.status for run in after] == ["FINISHED"] * 3
    assert [run.info.run_id for run in after[:2]] == [run.info.run_id for run in before]
    assert after[0].info.end_time == before[0].info.end_time
    with pytest.raises(UserError, match="is finished: there is nothing left to do"):
        workspace.invoke("resume", parent)
    with pytest.raises(UserError, match="is 3 seeds: train one of them on"):
        workspace.invoke("resume", parent, "train.epochs=2")


def test_what_cannot_be_done_with_seeds_is_refused(workspace):
    with pytest.raises(UserError) as raised:
        workspace.invoke("run", "digits", "--seeds", "1", "promote=m", "train.seed=4294967295")
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        *("--seeds", "--seeds"),
    ]
