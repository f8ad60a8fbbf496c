"""Addresses that answer, but not as Prefect does: one line each, with what to write."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator

import pytest

from torchyard.core.errors import RunError, UserError
from torchyard.pipelines.services.prefect_server import PrefectServer
from torchyard.pipelines.services.server.answer import check_prefect

Answers = dict[str, tuple[int, str]]  # by path: status and body; "" for every other path
PREFECT = {"/api/health": (200, "true"), "/api/admin/version": (200, '"3.9.1"')}


@pytest.fixture(autouse=True)
def _no_settings(alone):
    pass


@contextlib.contextmanager
def serving(answers: Answers) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers.get(self.path, answers.get("", (404, "{}")))
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if body[:1] == "<" else "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def saying(answer: bytes | None) -> Iterator[str]:
    """A port where something accepts, and says that; or nothing, and keeps the connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(4096)
            if answer is None:
                self.request.recv(4096)  # until who asked has gone
            else:
                self.request.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_prefect_itself_is_taken_and_needs_no_slash():
    with serving(PREFECT) as address:
        check_prefect(f"{address}/api")
        server = PrefectServer(f"{address}/api")
        with server:
            assert server.wait() == f"{address}/api"


@pytest.mark.parametrize(
    ("answers", "path", "kind", "says"),
    [
        (PREFECT, "", UserError, r"lacks its end; write http://127.0.0.1:\d+/api\.$"),
        ({**PREFECT, "": (200, "<html>")}, "", UserError, "lacks its end"),
        (PREFECT, "/v2/api", UserError, r"is not Prefect \(404 Not Found"),
        ({}, "/api", UserError, r"404 Not Found, application/json.*such as http://HOST:4200/api"),
        ({"": (200, "<html>")}, "/api", UserError, r"is not Prefect \(200 OK, text/html\)"),
        ({"": (200, "{}")}, "/api", UserError, "is not Prefect"),
        ({"": (401, "{}")}, "/api", UserError, r"refuses \(401\).*PREFECT_API_AUTH_STRING"),
        ({"": (403, "<html>")}, "/api", UserError, r"refuses \(403\).*PREFECT_API_AUTH_STRING"),
        (
            {**PREFECT, "/api/admin/version": (401, "{}")},
            "/api",
            UserError,
            r"refuses \(401\).*password",
        ),
        ({"": (503, "<html>")}, "/api", RunError, r"cannot answer now \(503 Service Unavailable"),
        ({"": (502, "")}, "/api", RunError, r"cannot answer now \(502 Bad Gateway"),
        ({"": (301, "")}, "/api", UserError, r"is not Prefect \(301"),
    ],
)
def test_what_answers_is_named_and_what_was_expected(answers, path, kind, says):
    with serving(answers) as address, pytest.raises(kind, match=says) as raised:
        check_prefect(f"{address}{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "kind", "says"),
    [
        ("127.0.0.1:4200/api", UserError, "is not an address.*such as http://HOST:4200/api"),
        ("localhost:4200/api", UserError, "is not an address"),
        ("htp://127.0.0.1:4200/api", UserError, "is not an address"),
        ("http:///api", UserError, "is not an address"),
        ("http://127.0.0.1:99999/api", UserError, "is not an address"),
        ("http://127.0.0.1:port/api", UserError, "is not an address"),
        ("http://me:secret@nowhere.invalid:4200/api", RunError, "no host is named 'nowhere"),
        ("http://127.0.0.1:9/api", RunError, "does not answer. Start it, or name another"),
    ],
)
def test_an_address_where_nothing_answers(address, kind, says):
    with pytest.raises(kind, match=says) as raised:
        check_prefect(address)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("scheme", "answer", "kind", "says"),
    [
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", UserError, "no TLS: write http://"),
        ("http", b"\x15\x03\x01\x00\x02\x02\x46", UserError, r"no HTTP.*Perhaps.*https://"),
        ("http", b"SSH-2.0-OpenSSH_9.2\r\n", UserError, "speaks no HTTP"),
        ("http", b"", UserError, "speaks no HTTP"),
        ("http", None, RunError, "has not answered for 0.3 seconds"),
        ("https", None, RunError, "has not answered for 0.3 seconds"),
    ],
)
def test_what_answers_in_another_language(scheme, answer, kind, says):
    timeout = 0.3 if answer is None else 60
    with saying(answer) as address, pytest.raises(kind, match=says):
        check_prefect(f"{scheme}://{address}/api", timeout=timeout)


def test_a_named_server_is_asked_before_anything_else(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(RunError, match="does not answer"), PrefectServer.connect():
        pytest.fail("the body of the with runs")


def test_the_users_own_time_limit_counts(monkeypatch):
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", "0.2")
    with saying(None) as address, pytest.raises(RunError, match=r"for 0\.2 seconds"):
        check_prefect(f"http://{address}/api")


def test_the_password_and_headers_of_the_users_settings_are_sent(monkeypatch):
    seen = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.update(self.headers.items())
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", json.dumps({"X-Gate": "open"}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        check_prefect(f"http://127.0.0.1:{server.server_port}/api")
        server.shutdown()
    assert (seen["Authorization"], seen["X-Gate"]) == ("Basic bWU6c2VjcmV0", "open")
