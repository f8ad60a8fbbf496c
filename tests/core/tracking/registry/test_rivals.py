"""Promotions that are cut short, and several at a time."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.core.tracking.registry.candidates import BEATS, champion, run
from torchyard import GateParams, Verdict
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.registry.champions import judge, promote, roll_back
from torchyard.core.tracking.registry.versions import history
from torchyard.core.tracking.store import store_lock


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
