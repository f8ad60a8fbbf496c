"""Who may use the Prefect server: attacked by another user and by pages of other origins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from torchyard.core.data.files import private_folder
from torchyard.core.errors import UserError
from torchyard.pipelines.services.prefect_server import state_folder
from torchyard.pipelines.services.server import access
from torchyard.pipelines.services.server.access import (
    LOGIN_PATH,
    OwnPagesOnly,
    login_page,
    password,
)

NOBODY = 65534
PYTHON = Path("/usr/bin/python3")  # the tests' own may lie where nobody else can read it
FORM = {"content-type": "text/plain"}  # what a page may send to any origin without asking first

# Makes a flow, as the first step to a deployment with a command of its own; prints the status.
ATTACK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1] + "/flows/", b'{"name": "attack"}')
request.add_header("Content-Type", "application/json")
try:
    print(open(sys.argv[2]).read())
except OSError as error:
    print(type(error).__name__)
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not PYTHON.exists(), reason="root alone can be another")
def test_another_user_of_the_machine_is_refused_and_cannot_read_the_password(workspace):
    file = Path(workspace.environment["PREFECT_HOME"]) / "torchyard" / "password"
    assert file.read_text().strip() == workspace.environment["PREFECT_API_AUTH_STRING"]
    printed = subprocess.run(
        [PYTHON, "-c", ATTACK, workspace.api_url, str(file)],
        user=NOBODY, group=NOBODY, extra_groups=[], env={}, cwd="/", text=True, capture_output=True,
    )  # fmt: skip
    assert printed.stdout.split() == ["PermissionError", "401"], printed.stderr
    found = httpx.post(
        f"{workspace.api_url}/flows/filter", json={}, headers=workspace.headers, trust_env=False,
        timeout=60,
    ).json()  # fmt: skip
    assert "attack" not in [flow["name"] for flow in found]


def test_no_process_shows_the_password_in_its_command_line(workspace):
    secret = workspace.environment["PREFECT_API_AUTH_STRING"].partition(":")[2].encode()
    seen = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended since
            seen.append(path.read_bytes())
    assert seen
    assert not [line for line in seen if secret in line]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},  # of a file, or a frame that is closed off
        {"origin": "http://127.0.0.1:1"},  # another port is another's page
        {"host": "evil.example"},  # a name that its owner lets mean 127.0.0.1
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"host": "127.0.0.1@evil.example"},
        {"host": "[127.0.0.1"},
        {"host": ""},
    ],
    ids=str,
)
def test_a_page_of_another_origin_is_refused_though_it_knew_the_password(workspace, headers):
    own = workspace.headers
    with httpx.Client(base_url=workspace.api_url, trust_env=False, timeout=60) as client:
        assert client.post("/flows/filter", json={}, headers=own).status_code == 200
        for method in ("GET", "POST", "OPTIONS"):
            answer = client.request(
                method, "/flows/filter", content=b"{}", headers={**own, **FORM, **headers}
            )
            assert answer.status_code in (400, 403)
            assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_is_answered_under_every_name_of_this_machine(workspace):
    port = urlsplit(workspace.api_url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:8080", f"[::1]:{port}"):
        answer = httpx.post(
            f"{workspace.api_url}/flows/filter",
            json={},
            headers={**workspace.headers, "host": host, "origin": f"http://{host}"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, host


def connect(address, **options):
    return websockets.sync.client.connect(address, proxy=None, open_timeout=60, **options)


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_websockets_ask_for_the_password_and_refuse_other_pages(workspace, path):
    address = workspace.api_url.replace("http", "ws", 1) + "/" + path
    secret = workspace.environment["PREFECT_API_AUTH_STRING"]

    def greet(token: str | None, **options) -> str:
        options.setdefault("subprotocols", ["prefect"])
        with connect(address, **options) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            return json.loads(socket.recv())["type"]

    assert greet(secret) == "auth_success"
    for token in (None, "torchyard:guess"):
        with pytest.raises(ConnectionClosed):
            greet(token)
    for refused in ({"origin": "http://evil.example"}, {"subprotocols": None}):
        with pytest.raises(InvalidStatus, match="403"):
            greet(secret, **refused)


def test_the_page_that_enters_the_password_is_the_users_alone(tmp_path):
    secret = password(private_folder(tmp_path / "state"))
    file = login_page(tmp_path / "state", "http://127.0.0.1:4200")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"http://127.0.0.1:4200{LOGIN_PATH}#" in file.read_text()
    assert secret not in file.as_uri()


# ------------------------------------------------------------------------------------ the file


def test_the_password_is_kept_in_a_file_that_nobody_else_can_read(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    made = password(private_folder(folder))
    assert len(made) > 30
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert password(folder) == made
    (folder / "password").write_text("\n")  # as a full disk leaves it: never an empty password
    assert len(password(folder)) > 30


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    (tmp_path / "theirs").rename(tmp_path / "torchyard")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"belongs to another user.*PREFECT_HOME"):
        state_folder()


# ------------------------------------------------------------------------------ the application


def test_two_hosts_in_one_request_are_none():
    sent = []

    async def application(scope, receive, send):
        sent.append("answered")

    async def send(message):
        sent.append(message.get("status"))

    headers = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
    scope = {"type": "http", "path": "/", "headers": headers}
    asyncio.run(OwnPagesOnly(application)(scope, None, send))
    assert sent[0] == 403
    assert "answered" not in sent


def test_a_websocket_that_does_not_say_who_it_is_is_closed(monkeypatch):
    monkeypatch.setattr(access, "GREETING_SECONDS", 0.05)
    got, sent = [], []

    async def application(scope, receive, send):
        got.extend([await receive(), await receive()])

    async def receive():
        if got or entered:
            await asyncio.sleep(60)
        entered.append(True)
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    entered: list[bool] = []
    scope = {"type": "websocket", "path": "/api/events/out", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(OwnPagesOnly(application)(scope, receive, send))
    assert [message["type"] for message in got] == ["websocket.connect", "websocket.disconnect"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.slow
def test_the_server_closes_websockets_that_stay_silent(workspace):
    """Without a password in the first message, whoever opened them: nothing stays open."""
    base = workspace.api_url.replace("http", "ws", 1)
    paths = ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled")
    with contextlib.ExitStack() as opened:
        sockets = [
            opened.enter_context(connect(f"{base}/{path}", subprotocols=["prefect"]))
            for path in paths
        ]
        for socket in sockets:
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=120)
