"""Up, down and status, with real servers, a real worker and real runs."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import sqlite3
import subprocess
import threading
from typing import Any

import httpx
import psutil
import pytest

from tests.pipelines.services.sandbox import LONG, OFTEN, SECONDS, Sandbox, eventually
from tests.pipelines.services.server.test_access import NOBODY, PYTHON
from torchyard.core.proxies import answers
from torchyard.core.tracking.location.address import database_of
from torchyard.pipelines.services.manager import ServiceManager, mlflow_server, serves


def test_the_mlflow_ui_of_a_copied_project_shows_the_copy(recorded, tmp_path) -> None:
    original = database_of(recorded.client.tracking_uri)
    assert original is not None
    copy = shutil.copyfile(original, tmp_path / "mlflow.db")
    mlflow_server(f"sqlite:///{copy}")
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        addresses = connection.execute("SELECT artifact_uri FROM runs WHERE experiment_id != '0'")
        assert {address.partition("/artifacts")[0] for (address,) in addresses} == {
            tmp_path.as_uri()
        }


@pytest.mark.skipif(os.geteuid() != 0 or not PYTHON.exists(), reason="root alone can be another")
def test_what_another_user_serves_at_mlflows_port_is_not_taken_for_ours(tmp_path) -> None:
    program = (
        "import http.server as s; w = s.HTTPServer(('127.0.0.1', 0), s.BaseHTTPRequestHandler); "
    )
    program += "print(w.server_port, flush=True); w.serve_forever()"
    stranger = subprocess.Popen(
        [PYTHON, "-c", program], user=NOBODY, group=NOBODY, extra_groups=[], env={}, cwd="/",
        text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with stranger:
        try:
            assert stranger.stdout
            taken = f"http://127.0.0.1:{int(stranger.stdout.readline())}"
            assert eventually(lambda: answers(f"{taken}/health"), 60)
            assert not serves(taken, [psutil.Process()])
            address, command, _ = mlflow_server(f"sqlite:///{tmp_path}/mlflow.db", taken)
            assert address != taken
            assert command[command.index("--port") + 1] == address.rpartition(":")[2]
        finally:
            stranger.kill()
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as own:
        thread = threading.Thread(target=own.serve_forever, args=[0.01])
        thread.start()
        try:
            address = f"http://127.0.0.1:{own.server_port}"
            assert serves(address, [psutil.Process()])
            # Nor is what this user serves there for another store.
            assert not serves(address, [psutil.Process(os.getppid())])
        finally:
            own.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ups_at_once_and_a_third_start_one_of_each_that_listens_here_alone(
    sandbox: Sandbox,
) -> None:
    both = [sandbox.start("up"), sandbox.start("up")]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed

    def services() -> dict[str, dict[str, Any]]:
        found = sandbox.services()
        del found["standby"]  # starts behind the others, and its memory is another each time
        return found

    before = services()
    assert {service["state"] for service in before.values()} == {"up"}
    assert len({service["process"] for service in before.values()}) == 4
    assert before["Prefect"]["address"] == sandbox.api.removesuffix("/api")
    sandbox.torchyard("up")
    assert services() == before
    for process in sandbox.processes(""):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections():
                assert connection.status != "LISTEN" or connection.laddr.ip == "127.0.0.1"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_up_serves_refuses_the_pages_of_others(sandbox: Sandbox) -> None:
    printed = sandbox.torchyard("up")
    assert 'PREFECT_API_AUTH_STRING="$(cat ' in printed
    mlflow = sandbox.services()["MLflow"]["address"] + "/api/2.0/mlflow/experiments/create"
    for address, own in ((mlflow, 200), (f"{sandbox.api}/flows/", 401)):
        for headers, status in (
            ({}, own),
            ({"host": "evil.example"}, 403),
            ({"origin": "http://evil.example"}, 403),
        ):
            answer = httpx.post(
                address, json={"name": str(headers)}, headers=headers, trust_env=False, timeout=60
            )
            assert answer.status_code == status, (address, headers)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unscheduled_in_mid_run_the_run_goes_on_and_down_ends_it_with_its_checkpoint(
    sandbox: Sandbox,
) -> None:
    sandbox.clear()
    sandbox.torchyard(*OFTEN)
    flow_run, _ = eventually(sandbox.training)
    assert "continues" in sandbox.torchyard("unschedule", "often")
    assert sandbox.plan() == []
    assert sandbox.run(flow_run)["state_type"] == "RUNNING"
    sandbox.torchyard("down")
    assert eventually(sandbox.all_dead)
    record = sandbox.record(flow_run)
    assert record
    assert (record["status"], record["torchyard.reason"]) == ("KILLED", "terminated")
    assert {service["state"] for service in sandbox.services().values()} == {"down"}
    assert "Nothing was up" in sandbox.torchyard("down")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_server_of_a_run_becomes_persistent_and_temporary_again(sandbox: Sandbox) -> None:
    """`up` while a run has its temporary server, a cancellation by hand, `down` during a run."""
    run = sandbox.start("run", "digits", *LONG)
    flow_run, record = eventually(sandbox.training)
    temporary = sandbox.services()["Prefect"]
    assert temporary["state"] == "starting"
    sandbox.torchyard("up")
    assert sandbox.services()["Prefect"]["process"] == temporary["process"]
    assert sandbox.services()["Prefect"]["state"] == "up"
    assert eventually(lambda: sandbox.post("deployments/filter") == [])  # by the reaper
    assert run.poll() is None
    sandbox.cancel(flow_run)
    printed = run.communicate(timeout=SECONDS)[0]
    assert run.returncode == 130, printed
    assert "cancelled in Prefect" in printed
    assert sandbox.run(flow_run)["state_type"] == "CANCELLED"
    cancelled = sandbox.record(flow_run)
    assert cancelled
    assert (cancelled["status"], cancelled["id"]) == ("KILLED", record["id"])

    run = sandbox.start("run", "digits", "model=straight", "train.epochs=2000")
    assert eventually(sandbox.training)
    assert "stays" in sandbox.torchyard("down")
    printed = run.communicate(timeout=600)[0]
    assert run.returncode == 0, printed
    assert eventually(sandbox.all_dead)


def test_the_state_file_has_no_password(tmp_path, monkeypatch):
    address = "http://me:hunter2%2F@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    services = ServiceManager(tmp_path)
    monkeypatch.setattr(services.supervisor, "state", object)  # as if it was running
    monkeypatch.setattr(services, "status", list)
    services.up()
    services.up()
    assert json.loads((tmp_path / "services.json").read_text()) == ["http://host:5000"]
    assert services.stores == [address]  # a process that knows the password uses it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert services.stores == ["http://host:5000"]
    assert services.mlflow(address).name == services.mlflow("http://host:5000").name
