"""torchyard.run, runs, load and compare, called as a program or a notebook calls them."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import torchyard
from torchyard import UserError
from torchyard.core.errors import RunError
from torchyard.pipelines.python import calls
from torchyard.pipelines.resumption import Resumption

pytestmark = pytest.mark.slow


async def in_a_loop(call):
    """Call as the cell of a notebook is called: while the thread's event loop runs."""
    return call()


@pytest.fixture(scope="module")
def run(workspace):
    settings = {"optimizer.lr": 0.01, "train": {"epochs": 2}}
    return asyncio.run(in_a_loop(lambda: torchyard.run("digits", "train.batch_size=64", settings)))


def test_a_run_in_a_notebook_is_recorded_as_every_run_is(run, client):
    recorded = client.get_run(run.run_id)
    assert recorded.info.status == run.status == "FINISHED"
    assert recorded.info.run_name == run.name
    assert run.accuracy == recorded.data.metrics["test/accuracy"] == run.metrics["test/accuracy"]
    low, high = run.interval
    assert low < run.accuracy < high
    assert recorded.data.params["optimizer.lr"] == "0.01"
    assert recorded.data.params["train.batch_size"] == "64"
    assert run.config["train"]["epochs"] == 2
    assert f"runs/{run.run_id}" in run.url


def test_its_results_are_data_frames(run):
    assert run.per_class["class"].tolist() == [str(digit) for digit in range(10)]
    assert run.per_class["correct"].sum() / run.per_class["images"].sum() == run.accuracy
    table = run.predictions
    assert (table["true"] == table["predicted"]).mean() == run.accuracy
    assert np.allclose(table["confidence"], [max(shares) for shares in table["probabilities"]])


def test_it_shows_itself(run):
    said = f"{100 * run.accuracy:.1f} % of 359 test samples right (95 % interval"
    assert repr(run).startswith(f"{run.name}  {run.run_id}\n{said}")
    page = run._repr_html_()
    assert said in page
    assert f'<a href="{run.url.replace("&", "&amp;")}">' in page
    assert page.count("<tr") == 11


def test_what_it_prints_is_what_the_command_prints(workspace, capsys):
    torchyard.run("digits", "train.epochs=1")
    lines = capsys.readouterr().out.splitlines()
    stages = dict.fromkeys(line.split()[0] for line in lines)
    assert list(stages) == ["prepare", "train", "evaluate", "report"]
    torchyard.run("digits", "train.epochs=1", quiet=True)
    assert capsys.readouterr().out == ""


def test_a_configuration_runs_again_and_a_repetition_is_the_earlier_run(run, client):
    again = torchyard.run(run.config, quiet=True)
    digests = [client.get_run(each.run_id).data.tags["weights_digest"] for each in (run, again)]
    assert digests[0] == digests[1]
    skipped = torchyard.run(run.config, {"train.skip_repeats": True}, quiet=True)
    assert skipped.run_id in (run.run_id, again.run_id)
    assert skipped.accuracy == run.accuracy


def test_every_mistake_is_raised_at_once_with_the_texts_of_the_command(workspace):
    before = len(torchyard.runs(limit=1000))
    with pytest.raises(UserError) as raised:
        torchyard.run("digits", "model=lenett", {"optimizer.lrr": 1, "train": {"epochs": 0}})
    assert raised.value.problems == [
        "train.epochs: must be greater than 0, not 0",
        "model: no model named 'lenett'. Did you mean 'lenet'?",
        "optimizer.lrr: unknown parameter of 'adam'. Did you mean 'optimizer.lr'?  "
        "(accepts: lr, betas, eps, amsgrad, weight_decay)",
    ]
    with pytest.raises(UserError, match=r"no preset named 'digit'. Did you mean 'digits'"):
        torchyard.run("digit")
    with pytest.raises(UserError, match=r"'train epochs' is not a key such as 'train.epochs'"):
        torchyard.run("digits", {"train epochs": 1})
    assert len(torchyard.runs(limit=1000)) == before


def test_a_run_that_fails_raises_what_the_command_prints(workspace, client):
    with pytest.raises(RunError, match="The loss became") as raised:
        torchyard.run("digits", {"optimizer": {"name": "sgd", "lr": 1e9}}, quiet=True)
    [note] = raised.value.__notes__
    assert note.startswith("Recorded as FAILED: lenet·sgd·digits #")
    failed = torchyard.load(note.split()[-1])
    assert failed.status == "FAILED"
    assert "It is FAILED." in repr(failed)
    assert failed._repr_html_().endswith("It is FAILED.</p>")
    with pytest.raises(UserError, match="has recorded no predictions: it is FAILED"):
        failed.accuracy  # noqa: B018
    with pytest.raises(UserError, match="has no model: it is FAILED"):
        failed.model  # noqa: B018


SCRIPT = """
import signal, torchyard
try:
    torchyard.run("digits", "train.epochs=5000")
except KeyboardInterrupt as interrupt:
    print("noted", *interrupt.__notes__)
print("and on", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def test_an_interrupt_ends_the_run_and_not_the_program(workspace, client):
    process = subprocess.Popen(
        [sys.executable, "-uc", SCRIPT],
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "epoch 2:" in line:
            process.send_signal(signal.SIGINT)
            break
    printed, _ = process.communicate(timeout=120)
    noted, on = printed.splitlines()[-2:]
    assert process.returncode == 0
    assert on == "and on True"
    assert noted.startswith("noted Recorded as KILLED: lenet·adam·digits #")
    killed = client.get_run(noted.split()[-1])
    assert killed.info.status == "KILLED"
    assert killed.data.tags["torchyard.reason"] == "interrupted"


def test_a_run_that_did_not_finish_is_resumed_and_one_that_did_is_trained_on(run, client):
    killed = torchyard.load("latest")
    assert killed.status == "KILLED"
    with pytest.raises(UserError, match=r"only a finished run is trained on"):
        torchyard.resume(killed, "train.epochs=6000")
    longer = torchyard.resume(run, {"train.epochs": 3}, quiet=True)
    assert longer.metrics["train/epochs"] == 3
    assert longer.run_id != run.run_id
    with pytest.raises(UserError, match=r"is finished: there is nothing left to do"):
        torchyard.resume(longer.run_id)


def test_several_seeds_are_one_result(workspace):
    several = torchyard.run("digits", "train.epochs=1", seeds=2, quiet=True)
    first, second = several.seeds
    assert several.accuracy == pytest.approx((first.accuracy + second.accuracy) / 2)
    low, high = several.interval
    assert low < several.accuracy < high
    assert "of the test samples right, by 2 seeds" in repr(several)
    assert "by 2 seeds" in several._repr_html_()
    assert first.seeds == []
    with pytest.raises(UserError, match="--seeds: must be 2 to 1000, not 1"):
        torchyard.run("digits", seeds=1)


def test_a_prefect_that_never_lets_go_does_not_keep_a_recorded_run(monkeypatch):
    for_ever = threading.Event()

    @contextlib.contextmanager
    def silent(resolved, shown, leave, **others):
        leave(None)
        for_ever.wait()
        yield lambda resolved: None

    monkeypatch.setattr(calls, "local_pipeline", silent)
    calls._run_in_thread(Resumption(None, None, None, None), calls._shown(True))
    with pytest.raises(RunError, match="goes on with the seeds that are left"):
        calls._run_in_thread(Resumption(None, None, None, 3), calls._shown(True))
    for_ever.set()


def test_runs_are_listed_as_the_command_lists_them(run):
    table = torchyard.runs("optimizer.lr=0.01", "accuracy>0", sort="accuracy")
    assert run.run_id in set(table["id"])
    assert table["accuracy"].is_monotonic_decreasing
    assert "train.epochs" in table
    with pytest.raises(UserError, match="no column 'acuracy'"):
        torchyard.runs(sort="acuracy")
    with pytest.raises(UserError, match=r"no run has the setting 'optimizer.lrr'"):
        torchyard.runs("optimizer.lrr=1")


def test_a_run_is_found_by_whatever_names_it(workspace, run):
    assert torchyard.load(run.name).run_id == run.run_id
    workspace.invoke("promote", run.run_id, "model=found", "gates=[]")
    for name in ("found", "found/1", "found@champion"):
        assert torchyard.load(name).run_id == run.run_id
    with pytest.raises(UserError, match=re.escape("found/2: no such version")):
        torchyard.load("found/2")
    with pytest.raises(UserError, match="no run with the id or name 'fuond'"):
        torchyard.load("fuond")


def test_runs_are_compared_as_their_tables_are(run):
    other = torchyard.run("digits", "train.epochs=1", quiet=True)
    by_name = torchyard.compare(run.name, other)
    assert (
        by_name.overall == torchyard.compare(run.prediction_table, other.prediction_table).overall
    )
    assert by_name.overall.first == run.accuracy
    assert by_name.overall.second == other.accuracy
