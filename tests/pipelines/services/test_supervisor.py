"""The supervisor: what is killed is reported as it is, and restarted."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.pipelines.services.sandbox import OFTEN, Sandbox, eventually
from torchyard.pipelines.services import supervisor
from torchyard.pipelines.services.manager import UP_TIMEOUT_SECONDS, ServiceManager
from torchyard.pipelines.services.server.process import SERVICES_FILE
from torchyard.pipelines.services.supervisor import QUERY_SECONDS, polling


def test_the_prefect_worker_asks_as_often_as_the_user_has_chosen(alone: Path) -> None:
    assert float(polling()[QUERY_SECONDS]) < 10  # Prefect's own
    (alone / "prefect.toml").write_text("[worker]\nquery_seconds = 30\n")
    assert polling() == {}


class Busy(supervisor.Supervisor):
    """Ends dead runs until it is told otherwise; notes what it would start in that time."""

    def __init__(self, manager: ServiceManager) -> None:
        super().__init__(manager)
        self.begun, self.started = time.monotonic(), threading.Event()
        self.seconds = 0.0

    def _reap(self) -> None:
        self.started.wait()

    def _ensure_server(self) -> None:
        pass

    def _ensure_ui(self, store: str) -> None:
        pass

    def _ensure_standby(self) -> None:
        pass

    def _ensure_worker(self) -> None:
        self.seconds = time.monotonic() - self.begun
        self.started.set()
        (self._manager.folder / SERVICES_FILE).unlink(missing_ok=True)


def test_the_prefect_worker_waits_for_the_end_of_dead_runs_but_not_for_ever(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervisor.CLEAN_SECONDS < UP_TIMEOUT_SECONDS / 2  # `up` would give up
    monkeypatch.setattr(supervisor, "CLEAN_SECONDS", 1.5)
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.01)
    manager = ServiceManager(alone)
    (alone / SERVICES_FILE).write_text('["sqlite:///mlruns/mlflow.db"]')
    busy = Busy(manager)
    threading.Thread(target=busy.run, daemon=True).start()
    assert busy.started.wait(60)
    assert busy.seconds > 1.4


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_whatever_is_killed_is_reported_as_dead_and_restarted(sandbox: Sandbox) -> None:
    sandbox.clear()
    sandbox.torchyard(*OFTEN)
    flow_run, _ = eventually(sandbox.training)
    before = sandbox.services()
    # The Prefect worker dies and its run continues. Then that dies, too, and cannot report it.
    psutil.Process(before["worker"]["process"]).kill()
    assert eventually(
        lambda: sandbox.services()["worker"]["process"] not in (None, before["worker"])
    )
    assert sandbox.run(flow_run)["state_type"] == "RUNNING"
    for process in sandbox.processes("standby.engine"):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends with its command
            process.kill()
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CRASHED")
    active = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    mine = {"id": {"any_": [flow_run]}}
    assert eventually(
        lambda: sandbox.post("task_runs/filter", task_runs=active, flow_runs=mine) == []
    )
    assert eventually(lambda: (sandbox.record(flow_run) or {})["status"] == "KILLED")
    assert "without reporting why" in sandbox.record(flow_run)["torchyard.reason"]  # type: ignore[index]

    # The slot it held is free: the schedule continues.
    flow_run, _ = eventually(sandbox.training)
    # The server and the MLflow UI die under it, and come back at their addresses.
    for name in ("Prefect", "MLflow"):
        psutil.Process(before[name]["process"]).kill()
    assert eventually(lambda: sandbox.services()["Prefect"]["state"] == "up")
    assert eventually(lambda: sandbox.services()["MLflow"]["state"] == "up")
    after = sandbox.services()
    for name in ("Prefect", "MLflow"):
        assert after[name]["address"] == before[name]["address"]
        assert after[name]["process"] != before[name]["process"]
    assert sandbox.run(flow_run)["state_type"] == "RUNNING"

    # Without a supervisor all services run on; `up` starts a new one.
    psutil.Process(after["supervisor"]["process"]).kill()
    assert eventually(lambda: sandbox.services()["supervisor"]["state"] == "down")
    assert sandbox.services()["Prefect"] == after["Prefect"]
    sandbox.torchyard("up")
    assert sandbox.services()["Prefect"] == after["Prefect"]
    assert sandbox.services()["supervisor"]["state"] == "up"
    # The new one restarts the others, too.
    psutil.Process(sandbox.services()["worker"]["process"]).kill()
    assert eventually(lambda: sandbox.services()["worker"]["state"] == "up")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_server_on_another_port_comes_back_there_and_a_run_ends_with_its_promotion(
    sandbox: Sandbox,
) -> None:
    sandbox.torchyard("down")
    default = urlsplit(sandbox.api).port
    with socket.create_server(("127.0.0.1", default)):
        sandbox.torchyard("up")
        address = sandbox.services()["Prefect"]["address"]
        assert urlsplit(address).port != default
        sandbox.api = f"{address}/api"
        run = sandbox.start(
            *("run", "digits", "model=straight", "train.epochs=600", "promote=straight"),
            *("train.batch_size=256",),
        )
        flow_run, _ = eventually(sandbox.training)
        psutil.Process(sandbox.services()["Prefect"]["process"]).kill()
        printed = run.communicate(timeout=600)[0]
        assert run.returncode == 0, printed
        assert "champion" in printed, printed
        record = sandbox.record(flow_run)
        assert record
        assert record["status"] == "FINISHED"
        assert eventually(lambda: sandbox.services()["Prefect"]["state"] == "up")
        assert sandbox.services()["Prefect"]["address"] == address
        assert sandbox.run(flow_run)["state_type"] == "COMPLETED"
