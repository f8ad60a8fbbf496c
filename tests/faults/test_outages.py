"""A server is killed in the middle of a run: training continues, and nothing is lost."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import httpx
import psutil
import pytest

from tests.ports import free_port

pytestmark = pytest.mark.faults

SETTINGS = ("digits", "train.epochs=30", "train.batch_size=16")


class MLflowServer:
    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        store = f"sqlite:///{self.folder}/server.db"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store),
                *("--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail("the MLflow server did not come up")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    started = MLflowServer(tmp_path)
    yield started
    started.kill()


def run_until(workspace, line, environment, folder, *settings):
    """Start a run, and wait until it has printed that."""
    process = workspace.begin("run", *SETTINGS, *settings, cwd=folder, env=environment)
    for printed in process.stdout:
        if line in printed:
            return process
    pytest.fail(process.communicate()[1])


def test_an_mlflow_server_that_is_killed_is_told_all_once_it_is_back(workspace, server, tmp_path):
    from mlflow import MlflowClient

    environment = workspace.environment | {"MLFLOW_TRACKING_URI": server.url}
    process = run_until(workspace, "epoch 2:", environment, tmp_path)
    server.kill()
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert re.search(r"MLflow does not answer: \d+ entries wait on disk", printed)
    run_id = re.search(r"`torchyard resume ([0-9a-f]{32})`", printed)[1]

    server.start()
    client = MlflowClient(server.url)
    assert client.get_run(run_id).info.status == "RUNNING"
    resumed = workspace.torchyard(
        "resume", run_id, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": server.url}
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "MLflow now has all of it" in resumed.stdout
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in losses] == list(range(1, 31))
    assert run.data.metrics["test/accuracy"] > 0.9
    [output] = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"
    assert {"report.md", "report.html", "predictions.parquet"} <= {
        found.path for found in client.list_artifacts(run_id)
    }


class Gateway:
    """Stands before the Prefect server, and from some moment on answers in its place."""

    def __init__(self, workspace):
        gateway = self
        self.answer = None  # "hangs", or a status and a body

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self):
                length = int(self.headers.get("Content-Length", 0))
                body, path = self.rfile.read(length), self.path.removeprefix("/api")
                if gateway.answer == "hangs":
                    time.sleep(600)
                if gateway.answer:
                    status, sent = gateway.answer
                else:
                    reply = httpx.request(
                        self.command,
                        workspace.api_url + path,
                        content=body,
                        headers=workspace.headers | {"Content-Type": "application/json"},
                        trust_env=False,
                        timeout=60,
                    )
                    status, sent = reply.status_code, reply.content
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_):
                pass

        for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"


@pytest.mark.parametrize("more", [(), ("promote=digits",)], ids=["", "promoted"])
@pytest.mark.parametrize(
    "answer",
    ["hangs", (503, b"{}"), (200, b"<html>sign in</html>"), (404, b"no"), (401, b"{}")],
    ids=["hangs", "503", "html", "404", "401"],
)
def test_what_prefect_says_at_the_end_decides_nothing(workspace, tmp_path, answer, more):
    from mlflow import MlflowClient

    gateway = Gateway(workspace)
    environment = workspace.environment | {
        "PREFECT_API_URL": gateway.url,
        "PREFECT_API_REQUEST_TIMEOUT": "3",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns/mlflow.db",
    }
    command = workspace.command("run", "digits", "train.epochs=6", "optimizer.lr=0.002", *more)
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for printed in process.stdout:
        if "epoch 2:" in printed:
            break
    gateway.answer = answer
    printed, errors = process.communicate(timeout=150)
    gateway.server.shutdown()
    assert process.returncode == 0, errors
    assert "Traceback" not in printed + errors
    assert "of 359 test samples right" in printed
    assert "The run is done, but Prefect does not know." in errors
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    [run] = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert [version.run_id for version in client.search_model_versions()] == (
        [run.info.run_id] if more else []
    )


def test_a_prefect_server_that_is_killed_takes_no_result_with_it(workspace, tmp_path):
    from mlflow import MlflowClient

    environment = {
        **workspace.environment,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "PREFECT_CLIENT_MAX_RETRIES": "0",  # as a rule it tries for a minute, each time
    }
    del environment["PREFECT_API_URL"]
    promoted = ("promote.model=digits", "promote.gates=[]")
    process = run_until(workspace, "epoch 2:", environment, tmp_path, *promoted)
    for child in psutil.Process(process.pid).children():
        if "torchyard.pipelines.services.server.process" in child.cmdline():
            child.kill()
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "of 359 test samples right" in printed
    assert "champion of digits: version 1" in printed
    assert "The run is done, but Prefect does not know." in errors
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    [run] = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert "report.html" in {found.path for found in client.list_artifacts(run.info.run_id)}
