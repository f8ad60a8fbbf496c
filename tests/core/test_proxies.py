"""What every library makes of the proxies once they are settled: nothing, for this machine."""

from __future__ import annotations

import http.server
import os
import threading
import urllib.request

import httpx
import pytest
import requests
import websockets.proxy
import websockets.uri

from torchyard.core import proxies
from torchyard.core.errors import UserError
from torchyard.core.proxies import check_proxy, is_loopback, settle_proxies

DEAD = "http://127.0.0.1:9"  # nothing answers there


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(proxies, "_unusable", {})


@pytest.fixture(scope="module")
def here():
    """The port of a server that answers everything with 204."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    "variables",
    [
        {"all_proxy": "socks5://127.0.0.1:9"},
        {"ALL_PROXY": "socks5h://me:secret@127.0.0.1:9"},
        {"all_proxy": "socks4://127.0.0.1:9"},
        {"all_proxy": "socks://127.0.0.1:9/"},
        {"https_proxy": "socks5://127.0.0.1:9", "HTTP_PROXY": DEAD},
        {"http_proxy": DEAD, "https_proxy": DEAD, "all_proxy": "socks5://127.0.0.1:9"},
        {"http_proxy": DEAD},
        {"HTTP_PROXY": DEAD, "http_proxy": "127.0.0.1:9"},
        {"http_proxy": "127.0.0.1:9"},
        {"http_proxy": "http://host:port"},
        {"http_proxy": "http://"},
        {"http_proxy": " "},
        {"all_proxy": "nonsense://x"},
        *(
            {"http_proxy": DEAD, name: hosts}
            for name in ("no_proxy", "NO_PROXY")
            for hosts in (
                "", " ", "*", ".", ",,", "[::1]", "::1/128", "fe80::/10,a:b:c", "127.*", "<local>",
                "localhost;10.0.0.1", "localhost 10.0.0.1", "http://10.0.0.1/", "bücher.example",
                "10.0.0.0/33", "127.0.0.0/8", "*.local", "127.0.0.1:1",
            )
        ),
        {"no_proxy": "[::1]"},
    ],
    ids=str,
)  # fmt: skip
def test_this_machine_is_asked_directly_by_every_library(variables, here, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settle_proxies()
    for host in ("127.0.0.1", "localhost"):
        address = f"http://{host}:{here}"
        with httpx.Client(verify=False) as client:
            assert client.get(address).status_code == 204
        assert requests.get(address).status_code == 204
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 204
        uri = websockets.uri.parse_uri(f"ws://{host}:{here}")
        assert websockets.proxy.get_proxy(uri) is None


def test_other_hosts_are_asked_as_before(monkeypatch):
    monkeypatch.setenv("http_proxy", DEAD)
    monkeypatch.setenv("NO_PROXY", "example.org, 10.0.0.0/8")
    assert settle_proxies() == []
    assert os.environ["no_proxy"].startswith("example.org,10.0.0.0/8,")
    assert os.environ["http_proxy"] == DEAD
    assert urllib.request.proxy_bypass("www.example.org")
    assert not urllib.request.proxy_bypass("example.com")
    check_proxy("http://example.com")


def test_without_proxies_nothing_is_set(monkeypatch):
    settle_proxies()
    assert not [name for name in os.environ if name.lower().endswith("_proxy")]


def test_a_proxy_that_cannot_be_used_is_named_where_it_is_needed(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://me:secret@127.0.0.1:7890")
    [line] = settle_proxies()
    assert line.startswith("all_proxy=socks5://127.0.0.1:7890 cannot be used: SOCKS needs")
    assert settle_proxies() == [line]
    check_proxy("http://127.0.0.1:4200/api")
    check_proxy("http://localhost:5000")
    with pytest.raises(UserError, match=r"socks5://127.0.0.1:7890 cannot.*http://tracking\."):
        check_proxy("http://tracking:5000")
    monkeypatch.setenv("no_proxy", "tracking")
    check_proxy("http://tracking:5000")


def test_a_socks_proxy_beside_one_that_can_be_used_needs_no_word(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:7890")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:7890")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:7890")
    assert settle_proxies() == []
    check_proxy("https://tracking")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machines_names(host):
    assert is_loopback(host)
    assert not is_loopback(f"{host}.example")
