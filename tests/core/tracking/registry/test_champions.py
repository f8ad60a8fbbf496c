"""The champion of a registered model, in a real MLflow store."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from torchyard import GateParams, Verdict
from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.registry.asks import asks
from torchyard.core.tracking.registry.champions import judge, promote, roll_back
from torchyard.core.tracking.registry.versions import champion_of, history
from torchyard.core.tracking.store import store_lock

SAMPLES = 40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for part in ("train", "test"):
        np.save(folder / f"{part}_samples.npy", np.zeros((SAMPLES, 4), np.float32))
        np.save(folder / f"{part}_labels.npy", np.zeros(SAMPLES, np.int64))
    manifest = {
        "name": "toy",
        "classes": ("a", "b"),
        "shape": (4,),
        "dtype": "float32",
        "mean": [0.0],
        "std": [1.0],
        "counts": {"train": SAMPLES, "test": SAMPLES},
        "digest": "0123456789abcdef" * 4,
        "source": "",
        "sizes": {path.name: path.stat().st_size for path in folder.glob("*.npy")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return PreparedDataset.open(folder)


@pytest.fixture
def client(new_store):
    return new_store


def run(client, prepared, right, digest="digest"):
    """A finished run that has that many test samples right."""
    record = RunRecord.start(name_stem="run", parameters={}, tags={"dataset": "toy"})
    logits = np.zeros((SAMPLES, 2), np.float32)
    logits[:right, 0] = logits[right:, 1] = 1
    made = Predictions(logits, np.zeros(SAMPLES, np.int64))
    PredictionTable(made, record.name, "toy", ("a", "b"), digest).write(Path(PREDICTIONS_FILE))
    record.log_file(Path(PREDICTIONS_FILE))
    Path("exported.pt2").write_bytes(b"weights")
    metrics = {"test/accuracy": right / SAMPLES}
    record.log_model(Path("exported.pt2"), prepared, torch_version="2.15.0", metrics=metrics)
    record.finish("FINISHED")
    return client.get_run(record.run_id)


def gates(*chosen):
    return [(name, host().find("gate", name).params(**given)) for name, given in chosen]


BEATS = gates(("beats_champion", {"significance": None}))


def champion(client):
    found = champion_of(client, "toy")
    return None if found is None else (int(found.version), found.run_id)


def test_the_better_one_takes_the_place_and_the_worse_one_does_not(client, prepared):
    first, better, worse = (run(client, prepared, right) for right in (30, 35, 32))
    judged = promote(client, first, "toy", BEATS)
    assert (judged.version, judged.before, champion(client)) == (1, None, (1, first.info.run_id))
    judged = promote(client, better, "toy", BEATS)
    assert judged.outcome == "champion of toy: version 2, in place of version 1"
    judged = promote(client, worse, "toy", BEATS)
    assert (judged.version, judged.before) == (None, 2)
    assert judged.outcome == "not the champion of toy (version 2 stays): refused by beats_champion"
    assert champion(client) == (2, better.info.run_id)

    # The verdicts with their figures stand in the runs.
    tags = client.get_run(worse.info.run_id).data.tags
    assert tags["torchyard.promotion"] == "refused by beats_champion"
    told = json.loads(
        Path(client.download_artifacts(worse.info.run_id, "promotion.json")).read_text()
    )
    assert told["model"] == "toy"
    assert told["gates"]["beats_champion"]["passed"] is False
    assert told["gates"]["beats_champion"]["figures"]["difference"] == pytest.approx(-3 / 40)

    # And so does who, when, why in the history, the newest first.
    rows = history(client, "toy")
    assert [(row["version"], row["status"], row["accuracy"]) for row in rows] == [
        (None, "refused by beats_champion", 32 / 40),
        (2, "champion", 35 / 40),
        (1, "replaced by version 2", 30 / 40),
    ]
    assert all(row["by"] and row["promoted_at"] and row["why"] for row in rows)
    assert rows == history(client)


def test_the_registered_version_is_the_model_that_the_run_logged(client, prepared):
    best = run(client, prepared, 30)
    promote(client, best, "toy", BEATS)
    version = client.get_model_version_by_alias("toy", "champion")
    [output] = client.get_run(best.info.run_id).outputs.model_outputs
    assert version.source == f"models:/{output.model_id}"


def test_rolled_back_the_champion_before_is_back_and_so_on(client, prepared):
    runs = [run(client, prepared, right) for right in (30, 32, 34)]
    for each in runs:
        promote(client, each, "toy", BEATS)
    assert roll_back(client, "toy") == (3, 2)
    assert champion(client) == (2, runs[1].info.run_id)
    assert roll_back(client, "toy") == (2, 1)
    with pytest.raises(UserError, match="version 1 of toy is its first champion"):
        roll_back(client, "toy")
    assert [row["status"].split(" by ")[0][:11] for row in history(client, "toy")] == [
        "rolled back",
        "rolled back",
        "champion",
    ]
    # What comes after takes the place of the one that is there now.
    last = run(client, prepared, 33)
    assert promote(client, last, "toy", BEATS).before == 1
    assert roll_back(client, "toy") == (4, 1)
    # One that was rolled back can become the champion again, as a version of its own.
    assert promote(client, runs[2], "toy", BEATS).version == 5
    # Asked again, as by a task that never heard its answer, it is what it is.
    assert promote(client, runs[2], "toy", BEATS).version == 5
    assert len(history(client, "toy")) == 5


def test_what_cannot_be_rolled_back_is_said(client, prepared):
    with pytest.raises(UserError, match="no registered model named 'toys'"):
        roll_back(client, "toys")
    for right in (30, 32):
        promote(client, run(client, prepared, right), "toy", BEATS)
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        roll_back(client, "toys")
    client.delete_model_version("toy", "1")
    with pytest.raises(UserError, match="version 1 of toy, the champion before, is deleted"):
        roll_back(client, "toy")
    client.delete_registered_model_alias("toy", "champion")
    with pytest.raises(UserError, match="toy has no champion"):
        roll_back(client, "toy")


def test_all_gates_are_asked_and_all_must_let_pass(client, prepared):
    strict = ("min_accuracy", {"threshold": 0.9})
    judged = promote(
        client, run(client, prepared, 30), "toy", gates(("beats_champion", {}), strict)
    )
    assert [(name, verdict.passed) for name, verdict in judged.verdicts] == [
        ("beats_champion", True),
        ("min_accuracy", False),
    ]
    assert judged.outcome == "not the champion of toy (there is none): refused by min_accuracy"
    assert champion(client) is None


class Broken(GateParams):
    """Raises."""

    def build(self):
        return lambda candidate, champion: 1 / 0


class Wrong(GateParams):
    """Gives something else."""

    def build(self):
        return lambda candidate, champion: True


class Interrupts(GateParams):
    """Raises what only a signal should."""

    def build(self):
        raise KeyboardInterrupt


class Exits(GateParams):
    """Asks Python to end."""

    def build(self):
        return lambda candidate, champion: sys.exit(0)


class Vague(GateParams):
    """Its verdict is neither yes nor no."""

    def build(self):
        return lambda candidate, champion: Verdict("no", "who knows")


class Numpys(GateParams):
    """Its verdict and figures are NumPy's."""

    def build(self):
        figures = {"accuracy": np.float32(0.5)}
        return lambda candidate, champion: Verdict(np.bool_(True), "as computed", figures)


def test_whatever_a_gate_raises_or_returns_is_a_verdict(client, prepared):
    all_of_them = [(each.__name__, each()) for each in (Interrupts, Exits, Vague, Numpys)]
    judged = promote(client, run(client, prepared, 35), "toy", all_of_them)
    assert [verdict.reason for _, verdict in judged.verdicts] == [
        "it could not judge: KeyboardInterrupt: ",
        "it could not judge: SystemExit: 0",
        "it could not judge: TypeError: 'passed' of its Verdict is 'no'",
        "as computed",
    ]
    assert champion(client) is None


def test_a_gate_that_cannot_judge_lets_nothing_pass(client, prepared):
    better = run(client, prepared, 35)
    judged = promote(client, better, "toy", [("broken", Broken()), ("wrong", Wrong())])
    assert [verdict.reason for _, verdict in judged.verdicts] == [
        "it could not judge: ZeroDivisionError: division by zero",
        "it could not judge: TypeError: it returned a bool, not a Verdict",
    ]
    assert champion(client) is None


def test_other_test_data_do_not_beat_a_champion(client, prepared):
    promote(client, run(client, prepared, 30), "toy", BEATS)
    judged = promote(client, run(client, prepared, 40, "other"), "toy", BEATS)
    assert judged.version is None
    assert "tested on different samples" in judged.verdicts[0][1].reason


def test_a_run_without_model_or_predictions_is_refused(client, prepared):
    record = RunRecord.start(name_stem="bare", parameters={}, tags={})
    record.finish("FINISHED")
    with pytest.raises(UserError, match="has no model: it is FINISHED"):
        promote(client, client.get_run(record.run_id), "toy", BEATS)
    first = run(client, prepared, 30)
    promote(client, first, "toy", BEATS)
    client.delete_run(first.info.run_id)
    for artifact in Path("mlruns").rglob(PREDICTIONS_FILE):
        if first.info.run_id in str(artifact):
            artifact.unlink()
    with pytest.raises(UserError, match="version 1 of toy is the champion, but what it predicted"):
        promote(client, run(client, prepared, 40), "toy", BEATS)
    assert champion(client) == (1, first.info.run_id)


@pytest.mark.parametrize(
    "call", ["create_model_version", "log_dict", "set_tag", "set_registered_model_alias"]
)
def test_a_failure_half_way_leaves_the_old_champion(client, prepared, monkeypatch, call):
    from mlflow.exceptions import MlflowException

    first, better = run(client, prepared, 30), run(client, prepared, 35)
    promote(client, first, "toy", BEATS)

    def away(*_, **__):
        raise MlflowException("Max retries exceeded")

    with monkeypatch.context() as outage:
        outage.setattr(client, call, away)
        with pytest.raises(RunError, match="does not answer"):
            promote(client, better, "toy", BEATS)
    assert champion(client) == (1, first.info.run_id)
    assert roll_back_refused(client)
    judged = promote(client, better, "toy", BEATS)
    assert champion(client) == (judged.version, better.info.run_id)
    # Of the attempt no version is left.
    assert [row["status"] for row in history(client, "toy")] == [
        "champion",
        f"replaced by version {judged.version}",
    ]


def roll_back_refused(client):
    with pytest.raises(UserError, match="is its first champion"):
        roll_back(client, "toy")
    return True


def test_whoever_judged_by_another_champion_judges_again(client, prepared, monkeypatch):
    """As when another machine, which no lock here keeps apart, promotes meanwhile."""
    first, better, best = (run(client, prepared, right) for right in (30, 35, 38))
    promote(client, first, "toy", BEATS)
    create = client.create_model_version

    def slow(*arguments, **named):
        made = create(*arguments, **named)
        monkeypatch.setattr(client, "create_model_version", create)
        theirs = create("toy", source=f"models:/{model(best)}", run_id=best.info.run_id)
        client.set_registered_model_alias("toy", "champion", str(theirs.version))
        return made

    def model(of):
        return client.get_run(of.info.run_id).outputs.model_outputs[0].model_id

    monkeypatch.setattr(client, "create_model_version", slow)
    judged = promote(client, better, "toy", BEATS)
    assert judged.version is None
    assert champion(client)[1] == best.info.run_id


def promote_alone(uri, run_id, results):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    judged = promote(client, client.get_run(run_id), "toy", BEATS)
    results.put((run_id, judged.version, judged.before))


@pytest.mark.slow
def test_two_at_once_do_not_both_win(client, prepared):
    """Both beat the champion, the second of them not the first."""
    promote(client, run(client, prepared, 30), "toy", BEATS)
    rivals = [run(client, prepared, 35).info.run_id for _ in range(2)]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [
        spawn.Process(target=promote_alone, args=(client.tracking_uri, each, results))
        for each in rivals
    ]
    for process in processes:
        process.start()
    told = sorted((results.get(timeout=200) for _ in processes), key=lambda each: str(each[1]))
    for process in processes:
        process.join()
    assert [(version, before) for _, version, before in told] == [(2, 1), (None, 2)]
    assert champion(client) == (2, told[0][0])


class Told(GateParams):
    """Passes, and says how often the test samples were asked."""

    number: int = 0

    def with_ask(self, number):
        return Told(number=number)

    def build(self):
        return lambda candidate, champion: Verdict(False, f"ask {self.number}")


def test_it_is_counted_how_often_the_test_samples_are_asked(client, prepared):
    told = [("told", Told())]
    first, second, third = (run(client, prepared, right) for right in (30, 31, 32))

    def asked(candidate, **more):
        judged = promote(client, candidate, "toy", told, **more)
        return judged.asked, judged.verdicts[0][1].reason

    assert asked(first) == (0, "ask 0")  # there is no champion to compare with
    promote(client, first, "toy", BEATS)
    assert asked(second) == (1, "ask 1")
    assert asked(second) == (1, "ask 1")  # the same question
    assert asked(third) == (2, "ask 2")
    assert promote(client, third, "toy", BEATS).asked == 2
    assert asked(second) == (3, "ask 3")  # of another champion
    # Chosen among ten by the test samples, it has asked them ten times.
    assert asked(run(client, prepared, 33), chosen_among=10) == (13, "ask 13")
    assert asks(client, "toy") == {"digest": 13}
    # Of other samples nothing has been asked: they do not pair with the champion's.
    assert asked(run(client, prepared, 33, "another")) == (0, "ask 0")
    tags = client.get_run(second.info.run_id).data.tags
    assert tags["torchyard.why"] == "told: ask 3; the test samples were asked 3 times"


def test_two_that_end_at_once_are_both_counted(client, prepared):
    promote(client, run(client, prepared, 30), "toy", BEATS)
    both, numbers = threading.Barrier(2, timeout=60), []

    def judge_together(*asked):
        both.wait()  # each has counted before the other's gates begin to judge
        return judge(*asked)

    def end(candidate):
        judged = promote(client, candidate, "toy", [("told", Told())], judge_together)
        numbers.append(judged.asked)

    threads = [threading.Thread(target=end, args=(run(client, prepared, 31),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) in ([1, 2], [2, 2])  # none takes itself for earlier than it was
    assert asks(client, "toy") == {"digest": 2}


def test_a_gate_that_fails_when_it_is_told_refuses(client, prepared):
    class Deaf(Told):
        """Raises."""

        def with_ask(self, number):
            raise ValueError("no more")

    promote(client, run(client, prepared, 30), "toy", BEATS)
    judged = promote(client, run(client, prepared, 31), "toy", [("deaf", Deaf())])
    assert judged.verdicts[0][1].reason == "it could not judge: ValueError: no more"

    class Gone(Told):
        """Ends the program."""

        def with_ask(self, number):
            raise SystemExit(0)

    judged = promote(client, run(client, prepared, 31), "toy", [("gone", Gone())])
    assert judged.verdicts[0][1].reason == "it could not judge: SystemExit: 0"

    class Forgetful(Told):
        """Returns nothing."""

        def with_ask(self, number):
            pass

    judged = promote(client, run(client, prepared, 31), "toy", [("forgetful", Forgetful())])
    assert judged.verdicts[0][1].reason.endswith("'with_ask' returned a NoneType")


def test_the_store_is_free_while_gates_judge(client, prepared):
    """A gate may take minutes, and other runs begin and end meanwhile."""

    def hold():
        with store_lock(client.tracking_uri):
            held.append(True)

    def judge_beside_another(*judged):
        other = threading.Thread(target=hold, daemon=True)
        other.start()
        other.join(60)
        return judge(*judged)

    held: list[bool] = []
    assert promote(client, run(client, prepared, 30), "toy", BEATS, judge_beside_another).version
    assert held


class Slow(GateParams):
    """Takes its time, and says when it has begun."""

    def build(self):
        def judge(candidate, champion):
            Path("judging").touch()
            time.sleep(600)
            return Verdict(True, "at last")

        return judge


def promote_slowly(uri, run_id):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    promote(client, client.get_run(run_id), "toy", [("slow", Slow())])


def test_killed_while_it_judges_nothing_has_changed_and_another_may(client, prepared):
    first, better = run(client, prepared, 30), run(client, prepared, 35)
    promote(client, first, "toy", BEATS)
    process = multiprocessing.get_context("spawn").Process(
        target=promote_slowly, args=(client.tracking_uri, better.info.run_id)
    )
    process.start()
    while not Path("judging").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert champion(client) == (1, first.info.run_id)
    assert promote(client, better, "toy", BEATS).version == 2


def test_names_that_other_programs_gave_break_nothing(client, prepared):
    names = ["a'b", 'a"b', "a'b\"c", "it's \x1b[2J", "%", "a` = b"]
    for name in names:
        client.create_registered_model(name)
        client.create_model_version(name, "somewhere")
    candidate = run(client, prepared, 30)
    client.set_tag(candidate.info.run_id, "torchyard.promotion", "refused by min_accuracy")
    client.set_tag(candidate.info.run_id, "torchyard.promotion.model", "a'b")
    rows = history(client)
    assert {row["model"] for row in rows} == set(names)
    assert [row["status"] for row in history(client, "a'b")].count("refused by min_accuracy") == 1
    assert [row["version"] for row in history(client, "a'b\"c")] == [1]
    with pytest.raises(UserError, match="has no champion"):
        roll_back(client, "a'b\"c")
