"""The local services, with real servers and real processes: who starts, shares and ends them."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.ports import free_port
from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import http_get
from torchyard.pipelines.services import prefect_server
from torchyard.pipelines.services.daemon import Daemon, is_served_by_this_user, state_lock
from torchyard.pipelines.services.prefect_server import PrefectServer
from torchyard.pipelines.services.server import process
from torchyard.pipelines.services.server.process import HEADER

# ----------------------------------------------------------------------------------- users

USER = """
import sys
from torchyard.core.proxies import settle_proxies
from torchyard.pipelines.services.prefect_server import PrefectServer, use
settle_proxies()  # as whoever runs a flow has, with the check of the store
with PrefectServer.connect() as server:
    assert "prefect" not in sys.modules
    print(server.api_url, flush=True)
    server.wait()
    print("up", flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""

FLOW = """
from prefect import flow, task
@task
def double(number):
    return 2 * number
@flow
def doubles():
    for number in range(5):
        double(number)
"""


class User:
    """A process that uses the Prefect server, and executes the lines of its standard input."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env,
            cwd=folder, start_new_session=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout
        if line := self.process.stdout.readline().strip():
            return line
        assert self.process.stderr
        raise AssertionError(self.process.stderr.read())

    def execute(self, line: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.says()

    def ends(self) -> str:
        """Let it finish; what it wrote to standard error."""
        return self.process.communicate(timeout=150)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def env(folder: Path) -> dict[str, str]:
    """A user's environment without any Prefect setting but a home and a default port of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    plain.pop("no_proxy", None)
    plain.pop("NO_PROXY", None)
    return plain | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "HTTP_PROXY": "http://127.0.0.1:9",  # nothing answers there: 127.0.0.1 needs no proxy
    }


@pytest.fixture
def new_user(env: dict[str, str], folder: Path) -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def start(**more: str) -> User:
        users.append(User(env | more, folder))
        return users[-1]

    yield start
    for user in users:
        user.process.kill()
        user.process.communicate()


def servers(home: str) -> list[psutil.Process]:
    """The processes that serve this PREFECT_HOME."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if {"torchyard.pipelines.services.server.process", f"{home}/torchyard"}
        <= set(process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


# ------------------------------------------------------------------------- one server, shared


@pytest.mark.long
def test_two_first_runs_share_one_server_until_the_last_has_ended(
    env: dict[str, str], folder: Path, new_user: Callable[..., User]
) -> None:
    state = folder / "home" / "torchyard" / "server.lock"
    state.parent.mkdir(parents=True)
    state.parent.parent.chmod(0o700)
    state.write_text("http://127.0.0.1:1/api, left by a server that was killed long ago")

    first, second = new_user(), new_user()
    address = first.says()
    assert address == f"http://127.0.0.1:{env['PREFECT_SERVER_API_PORT']}/api"
    assert second.says() == address
    assert (first.says(), second.says()) == ("up", "up")
    starters = [(user.execute("print(server.starting)"), user.says()) for user in (first, second)]
    assert sorted(starters) == [("False", "done"), ("True", "done")], "one of them has started it"
    (server,) = servers(env["PREFECT_HOME"])
    assert {at.laddr.ip for at in server.net_connections() if at.status == "LISTEN"} == {
        "127.0.0.1"
    }
    assert os.getsid(server.pid) != os.getsid(first.process.pid), "Ctrl-C would reach it"
    _, settings = http_get(address.replace("/api", "/ui-settings"), 5)
    assert json.loads(settings)["api_url"] == "/api"

    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    time.sleep(4)  # twice the time an unused server stays
    (folder / "doubles.py").write_text(textwrap.dedent(FLOW))
    assert (
        second.execute("sys.path.insert(0, '.'); import doubles") == "done"
    )  # before `use`: settings are read
    assert second.execute("with use(server.wait()): doubles.doubles()") == "done"
    assert second.execute("assert 'prefect.server.api.server' not in sys.modules") == "done"
    assert "Traceback" not in second.ends()
    assert wait_until(lambda: not servers(env["PREFECT_HOME"])), "nobody uses it any more"

    # What Prefect sends at the very end of a process has arrived as well, in the user's database.
    modes = [(folder / name).stat().st_mode & 0o777 for name in ("home", "home/prefect.db")]
    assert modes == [0o700, 0o600]
    with sqlite3.connect(folder / "home" / "prefect.db") as database:
        states = database.execute("select state_type from task_run").fetchall()
    assert states == [("COMPLETED",)] * 5


@pytest.mark.slow
def test_a_killed_starter_leaves_a_server_that_the_next_can_use_and_a_dead_one_is_named(
    env: dict[str, str], tmp_path: Path, new_user: Callable[..., User]
) -> None:
    starter = new_user()
    address = starter.says()
    starter.process.send_signal(signal.SIGKILL)  # while the server is still loading

    # Another PREFECT_HOME means another database: it gets a server of its own, which here dies.
    other = new_user(PREFECT_HOME=str(tmp_path), PREFECT_SERVER_API_KEEPALIVE_TIMEOUT="soon")
    assert other.says() != address

    second = new_user()
    assert (second.says(), second.says()) == (address, "up")
    (server,) = servers(env["PREFECT_HOME"])
    server.kill()
    assert wait_until(lambda: not servers(env["PREFECT_HOME"]))
    assert second.process.stdin
    second.process.stdin.write("raise ConnectionError('all attempts failed')\n")
    error = second.ends().splitlines()[-1]
    assert re.search(f"RunError: The local Prefect server at {address} has died.*server.log", error)

    error = other.ends()
    log = tmp_path / "torchyard" / "server.log"
    assert f"has died. Its log is {log} and ends with:" in error
    assert "unable to parse string as an integer" in error
    assert "unable to parse string as an integer" in log.read_text()


@pytest.mark.slow
def test_an_unused_server_ends_by_itself(tmp_path: Path, new_user: Callable[..., User]) -> None:
    """Killed before its server has even loaded, a user leaves nothing behind."""
    user = new_user(PREFECT_HOME=str(tmp_path / "home"))
    user.says()
    user.process.kill()
    assert servers(str(tmp_path / "home"))
    assert wait_until(lambda: not servers(str(tmp_path / "home")))


# ------------------------------------------------------------------------------ a server found


@pytest.mark.parametrize(
    ("answer", "headers", "usable"),
    [
        (json.dumps(version("prefect")), {}, True),
        ('"3.999.0"', {}, True),
        ('"3.0.0"', {}, False),
        ('"2.20.4"', {}, False),
        ('{"detail": "Not Found"}', {}, False),
        ("<html>", {}, False),
        (json.dumps(version("prefect")), {HEADER: "temporary"}, False),
    ],
)
def test_only_a_lasting_server_of_a_fitting_version_is_used(
    answer: str, headers: dict[str, str], usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(server.server_port))
        found = prefect_server.found_server()
    assert found == (f"http://127.0.0.1:{server.server_port}/api" if usable else None)


def test_a_named_server_is_used_and_nothing_is_started(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    server = PrefectServer.connect()
    assert not server.managed
    assert not (alone / "home").exists()
    with pytest.raises(RunError, match=r"http://127.0.0.1:9/api does not answer.*PREFECT_API_URL"):
        server.wait(timeout=5)


def test_a_home_that_cannot_be_written_is_named(alone: Path) -> None:
    (alone / "home").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"PREFECT_HOME=.*home: no Prefect server can start"):
        PrefectServer.connect()


# ------------------------------------------------------------------------ the port of a dead one


@pytest.fixture
def dummy(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The server is a process that only sleeps, and its default port is taken by another."""
    sleep = (
        "import os, sys, time; os.write(int(sys.argv[1]), b'%d \\n' % os.getpid()); time.sleep(99)"
    )
    monkeypatch.setattr(
        process,
        "command",
        lambda folder, listener, lock: [
            *(sys.executable, "-c", f"import os; os.lseek({lock}, 0, 2); {sleep}", str(lock))
        ],
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(other.getsockname()[1]))
        folder = prefect_server.state_folder()
        daemon = Daemon(folder, "server")
        yield daemon
        with state_lock(folder):
            daemon.stop(1)


def dies(daemon: Daemon) -> None:
    assert wait_until(lambda: bool((state := daemon.state()) and state.pid))
    state = daemon.state()
    assert state
    psutil.Process(state.pid).kill()
    assert wait_until(lambda: daemon.state() is None)


def test_a_server_that_died_comes_back_at_its_address_for_its_users(dummy: Daemon) -> None:
    folder = dummy.lock.parent
    first = PrefectServer.share_or_start(folder)  # this process is its user from now on
    dies(dummy)
    assert PrefectServer.share_or_start(folder).api_url == first.api_url


def test_the_port_of_a_dead_server_is_kept_and_its_clients_wait(dummy: Daemon) -> None:
    folder, kept = dummy.lock.parent, []  # type: ignore[var-annotated]
    first = PrefectServer.share_or_start(folder, kept)
    dies(dummy)
    port = urlsplit(first.api_url).port
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    socket.create_connection(("127.0.0.1", port)).close()
    assert PrefectServer.share_or_start(folder, kept).api_url == first.api_url
    for held in kept:
        held.close()


def test_settings_that_name_our_own_server_name_no_other(
    dummy: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PrefectServer.share_or_start(dummy.lock.parent)
    for spelled in (
        first.api_url,  # as `torchyard up` says to
        first.api_url + "/",
        first.api_url.replace("127.0.0.1", "localhost"),
    ):
        monkeypatch.setenv("PREFECT_API_URL", spelled)
        found = PrefectServer.connect()
        assert (found.api_url, found.managed) == (first.api_url, True)
    with prefect_server.use(first.api_url):
        secret = os.environ["PREFECT_API_AUTH_STRING"]
    assert secret == (dummy.lock.parent / "password").read_text().strip()
    with prefect_server.use("http://127.0.0.1:1/api"):
        assert "PREFECT_API_AUTH_STRING" not in os.environ


def test_a_server_of_another_user_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have commands run here, those of its deployments."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert is_served_by_this_user(port)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert not is_served_by_this_user(port)
