"""Real servers, a real worker and schedules that fire: up, down, and all that dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from torchyard.pipelines.services.daemon import Piece, announce, books, foreign

ROOT = Path(__file__).parents[3]
SECONDS = 150  # the machine may be busy

# ---------------------------------------------------------------------------------- a piece

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
STARTS_ANOTHER = f"import subprocess, time; subprocess.Popen({SLEEPS!r}); time.sleep(60)"


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What the condition gives once it is true; a server that is away is asked again."""
    end = time.monotonic() + seconds
    found = None
    while not found and time.monotonic() < end:
        with contextlib.suppress(OSError, sqlite3.OperationalError):
            found = condition()
        time.sleep(0.2)
    return found


@pytest.fixture
def piece(tmp_path: Path) -> Iterator[Piece]:
    piece = Piece(tmp_path, "sleeper")
    yield piece
    with books(tmp_path):
        piece.stop(1)


def test_a_piece_is_there_as_long_as_its_process_lives(piece: Piece, tmp_path: Path) -> None:
    with books(tmp_path):
        assert piece.found() is None
        piece.start(foreign(SLEEPS), "here")
        facts = piece.found()
        assert facts
        assert facts.address == "here"
        with pytest.raises(BlockingIOError):
            piece.start(foreign(SLEEPS), "there")
    pid = eventually(lambda: (facts := piece.found()) and facts.pid)
    process = psutil.Process(pid)
    assert os.getsid(pid) == pid
    process.kill()
    assert eventually(lambda: piece.found() is None)


def test_stopping_a_piece_ends_what_it_started_also_after_its_death(
    piece: Piece, tmp_path: Path
) -> None:
    piece.start(foreign([sys.executable, "-c", STARTS_ANOTHER]), "")
    assert eventually(lambda: len(piece.members()) == 2)
    facts = piece.found()
    assert facts
    psutil.Process(facts.pid).kill()
    [left] = eventually(lambda: len(members := piece.members()) == 1 and members)
    with books(tmp_path):
        piece.stop()
    assert eventually(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)


def test_a_stale_number_is_never_believed(tmp_path: Path) -> None:
    piece = Piece(tmp_path, "dead")
    piece.lock.write_text(f'["here", "2026-01-01T00:00:00+00:00", "me"]\n{os.getpid()} up\n')
    with books(tmp_path):
        assert piece.found() is None
        piece.stop(1)  # and this process lives on
    life = os.open(piece.lock, os.O_RDWR)
    announce(life)
    os.close(life)
    assert piece.found() is None


# ---------------------------------------------------------------------------------- the services

PLUGIN = """
from torchyard import ModelParams, hookimpl


class Straight(ModelParams):
    \"\"\"One layer.\"\"\"

    def build(self, input_shape, num_classes):
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


@hookimpl
def register_models(register):
    register("straight", Straight)
"""


class Town:
    """A home with a port of its own, a working folder with a plugin, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "work" / "torchyard_plugins").mkdir(parents=True)
        (folder / "work" / "torchyard_plugins" / "straight.py").write_text(PLUGIN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "TORCHYARD_"))
        }
        self.environment = plain | {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_API_PORT": str(port),
            "TORCHYARD_CACHE": str(folder / "cache"),
        }
        self.api = f"http://127.0.0.1:{port}/api"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torchyard", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder / "work", env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def torchyard(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == status, printed
        return printed

    def parts(self) -> dict[str, dict[str, Any]]:
        told = json.loads(self.torchyard("status", "--json"))
        return {part["name"]: part for part in told["parts"]}

    def ask(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def runs(self, *states: str, **where: Any) -> list[dict[str, Any]]:
        chosen = {"flow_runs": {"state": {"type": {"any_": states}}}} if states else {}
        return self.ask(
            "flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=20, **chosen, **where
        )

    def run(self, identity: str) -> dict[str, Any]:
        return self.ask("flow_runs/filter", flow_runs={"id": {"any_": [identity]}})[0]

    def cancel(self, identity: str) -> None:
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.ask(f"flow_runs/{identity}/set_state", state=state)

    def record(self, flow_run: str) -> dict[str, str] | None:
        """The MLflow run of a flow run: its status and tags."""
        database = self.folder / "work" / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            found = store.execute(
                "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = 'prefect.flow_run_id' and t.value = ?",
                [flow_run],
            ).fetchall()
            if not found:
                return None
            [(run_id, status)] = found
            tags = store.execute("select key, value from tags where run_uuid = ?", [run_id])
            return {**dict(tags.fetchall()), "status": status, "id": run_id}

    def training(self) -> tuple[str, dict[str, str]] | None:
        """A flow run that trains, its checkpoint written, and its record."""
        for run in self.runs("RUNNING"):
            record = self.record(run["id"])
            if record and list(self.folder.glob(f"work/mlruns/runs/{record['id']}/last.pt")):
                return run["id"], record
        return None

    def processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") != self.environment["PREFECT_HOME"]:
                    continue
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def forget_often(self) -> None:
        """Unschedule what a test before this one scheduled, and cancel its run."""
        if self.ask("deployments/filter"):
            self.torchyard("unschedule", "often")
        for run in self.runs("RUNNING"):
            self.cancel(run["id"])

    def everything_dies(self) -> bool:
        return not [p for p in self.processes("") if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    town = Town(tmp_path_factory.mktemp("town"))
    yield town
    town.torchyard("down")
    dead = eventually(town.everything_dies, 20)
    for process in town.processes(""):
        process.kill()
    assert dead


LONG = ("model=straight", "train.epochs=1000000")
OFTEN = ("schedule", "digits", *LONG, "--interval", "15s", "--name", "often")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ups_at_once_and_a_third_make_one_yard_that_listens_here_alone(town: Town) -> None:
    both = [town.start("up"), town.start("up")]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    before = town.parts()
    assert {part["state"] for part in before.values()} == {"up"}
    assert len({part["process"] for part in before.values()}) == 4
    assert before["Prefect"]["address"] == town.api.removesuffix("/api")
    town.torchyard("up")
    assert town.parts() == before
    for process in town.processes(""):
        with contextlib.suppress(psutil.NoSuchProcess):
            for at in process.net_connections():
                assert at.status != "LISTEN" or at.laddr.ip == "127.0.0.1"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_wrong_registers_nothing(town: Town) -> None:
    town.torchyard("up")
    printed = town.torchyard(
        "schedule", "digits", "model=strait", "train.epochs=x", "--cron", "0 3", "--timezone",
        "Mars", status=2,
    )  # fmt: skip
    for problem in ("Did you mean 'straight'", "train.epochs", "--cron: '0 3'", "'Mars'"):
        assert problem in printed
    printed = town.torchyard("deploy", "digits", "--pool", "torchyrd", status=2)
    assert "no work pool 'torchyrd'" in printed
    printed = town.torchyard("unschedule", "nothing", status=2)
    assert "no schedule or deployment named 'nothing'" in printed
    assert town.ask("deployments/filter") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_schedule_fires_here_and_a_run_that_would_overlap_is_skipped(town: Town) -> None:
    both = [
        town.start(*OFTEN),
        town.start(*OFTEN),
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    [deployment] = town.ask("deployments/filter")
    assert len(deployment["schedules"]) == 1
    fields = deployment["parameter_openapi_schema"]["definitions"]["chosen_optimizer"]
    assert fields["properties"]["lr"]["type"] == "number"
    flow_run, record = eventually(town.training)
    assert record["plugin.model"].startswith("sha256:")  # the plugin of the working folder
    assert Path(psutil.Process(town.processes("prefect.engine")[0].pid).cwd()) == (
        town.folder / "work"
    )
    [skipped, *_] = eventually(lambda: town.runs("CANCELLED"))
    assert "concurrency limit" in skipped["state"]["message"]
    assert len(town.runs("RUNNING")) == 1
    plan = json.loads(town.torchyard("status", "--json"))["plan"]
    assert [(row["name"], row["times"]) for row in plan] == [("often", "every 0:00:15")]
    assert plan[0]["next"]

    town.cancel(flow_run)  # what Prefect's UI does
    assert eventually(lambda: town.run(flow_run)["state_type"] == "CANCELLED")
    record = town.record(flow_run)
    assert record
    assert (record["status"], record["torchyard.reason"]) == ("KILLED", "cancelled in Prefect")
    assert list(town.folder.glob(f"work/mlruns/runs/{record['id']}/last.pt"))


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_whatever_is_killed_is_told_truly_and_comes_back(town: Town) -> None:
    town.torchyard("up")
    town.torchyard(*OFTEN)
    flow_run, _ = eventually(town.training)
    before = town.parts()
    # The worker dies: its run goes on. Then that dies, too, and nobody is left to say so.
    psutil.Process(before["worker"]["process"]).kill()
    assert eventually(lambda: town.parts()["worker"]["process"] not in (None, before["worker"]))
    assert town.run(flow_run)["state_type"] == "RUNNING"
    for process in town.processes("prefect.engine"):
        process.kill()
    assert eventually(lambda: town.run(flow_run)["state_type"] == "CRASHED")
    assert eventually(lambda: (town.record(flow_run) or {})["status"] == "KILLED")
    assert "without a word" in town.record(flow_run)["torchyard.reason"]  # type: ignore[index]

    # The slot it held is free: the schedule goes on.
    flow_run, _ = eventually(town.training)
    # The server and the MLflow UI die under it, and come back at their addresses.
    for name in ("Prefect", "MLflow"):
        psutil.Process(before[name]["process"]).kill()
    assert eventually(lambda: town.parts()["Prefect"]["state"] == "up")
    assert eventually(lambda: town.parts()["MLflow"]["state"] == "up")
    after = town.parts()
    for name in ("Prefect", "MLflow"):
        assert after[name]["address"] == before[name]["address"]
        assert after[name]["process"] != before[name]["process"]
    assert town.run(flow_run)["state_type"] == "RUNNING"

    # Without its supervisor all goes on; `up` gives it a new one.
    psutil.Process(after["keeper"]["process"]).kill()
    assert eventually(lambda: town.parts()["keeper"]["state"] == "down")
    assert town.parts()["Prefect"] == after["Prefect"]
    town.torchyard("up")
    assert town.parts()["Prefect"] == after["Prefect"]
    assert town.parts()["keeper"]["state"] == "up"
    psutil.Process(town.parts()["worker"]["process"]).kill()  # the new one minds the others, too
    assert eventually(lambda: town.parts()["worker"]["state"] == "up")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_of_a_pool_runs_what_was_deployed_or_says_what_it_lacks(town: Town) -> None:
    """The worker is in an empty folder, as on another machine."""
    town.torchyard("up")
    town.forget_often()  # to have the machine's cores
    elsewhere = town.folder / "elsewhere"
    elsewhere.mkdir()
    environment = town.environment | {"PREFECT_API_URL": town.api}

    def prefect(*arguments: str, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT if arguments[0] == "deploy" else elsewhere, env=environment | more,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def worked(deployment: str, **more: str) -> dict[str, Any]:
        prefect("deployment", "run", f"train_pipeline/{deployment}")
        prefect("worker", "start", "--pool", "elsewhere", "--run-once", **more)
        return town.runs("COMPLETED", "FAILED", "CRASHED")[0]["state"]

    store = f"env.MLFLOW_TRACKING_URI=sqlite:///{town.folder}/work/mlruns/mlflow.db"
    prefect("work-pool", "create", "elsewhere", "--type", "process")
    short = ("digits", "model=straight", "train.epochs=1")
    town.torchyard("deploy", *short, "--pool", "elsewhere", "--name", "bare")
    assert "the record would be lost" in worked("bare")["message"]
    town.torchyard(
        "deploy", *short, "--pool", "elsewhere", "--name", "bare", "--job-variable", store
    )
    message = worked("bare")["message"]
    assert "no model named 'straight'" in message
    assert "straight.py when this was deployed" in message
    plugins = str(town.folder / "work" / "torchyard_plugins")
    assert worked("bare", TORCHYARD_PLUGINS=plugins)["type"] == "COMPLETED"

    prefect("deploy", "-n", "digits", MLFLOW_TRACKING_URI="sqlite:////nowhere/mlflow.db")
    names = {found["name"] for found in town.ask("deployments/filter")}
    assert {"bare", "digits"} <= names
    town.torchyard("unschedule", "bare")
    town.torchyard("unschedule", "digits")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unscheduled_in_mid_run_the_run_goes_on_and_down_ends_it_with_its_checkpoint(
    town: Town,
) -> None:
    town.torchyard("up")
    town.torchyard(*OFTEN)
    flow_run, _ = eventually(town.training)
    assert "goes on" in town.torchyard("unschedule", "often")
    assert json.loads(town.torchyard("status", "--json"))["plan"] == []
    assert town.run(flow_run)["state_type"] == "RUNNING"
    town.torchyard("down")
    assert eventually(town.everything_dies)
    record = town.record(flow_run)
    assert record
    assert (record["status"], record["torchyard.reason"]) == ("KILLED", "terminated")
    assert {part["state"] for part in town.parts().values()} == {"down"}
    assert "Nothing was up" in town.torchyard("down")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_of_a_run_becomes_the_yards_and_the_runs_again(town: Town) -> None:
    """`up` while a run has its temporary server, a cancellation by hand, `down` during a run."""
    run = town.start("run", "digits", *LONG)
    flow_run, record = eventually(town.training)
    temporary = town.parts()["Prefect"]
    assert temporary["state"] == "starting"
    town.torchyard("up")
    assert town.parts()["Prefect"]["process"] == temporary["process"]
    assert town.parts()["Prefect"]["state"] == "up"
    assert eventually(lambda: town.ask("deployments/filter") == [])  # the watch has deleted it
    assert run.poll() is None
    town.cancel(flow_run)
    printed = run.communicate(timeout=SECONDS)[0]
    assert run.returncode == 130, printed
    assert "cancelled in Prefect" in printed
    assert town.run(flow_run)["state_type"] == "CANCELLED"
    cancelled = town.record(flow_run)
    assert cancelled
    assert (cancelled["status"], cancelled["id"]) == ("KILLED", record["id"])

    run = town.start("run", "digits", "model=straight", "train.epochs=2000")
    assert eventually(town.training)
    assert "stays" in town.torchyard("down")
    printed = run.communicate(timeout=600)[0]
    assert run.returncode == 0, printed
    assert eventually(town.everything_dies)
