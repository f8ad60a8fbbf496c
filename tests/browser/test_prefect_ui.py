"""Prefect's UI in the browser: its owner gets in, a page of another origin does not."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import CHROMIUM, PATIENCE
from torchyard.pipelines.services.server.access import login_page

pytestmark = pytest.mark.slow

# What a page tries: with an answer it may read, and with one that it may not.
ATTACK = """async ([api, secret]) => {
    const tries = [], body = JSON.stringify({name: "attack"});
    const plain = {"Content-Type": "text/plain"}, whole = {"Content-Type": "application/json"};
    for (const headers of [plain, whole, {...whole, Authorization: "Basic " + btoa(secret)}])
        for (const mode of ["cors", "no-cors"])
            tries.push(fetch(api + "/flows/", {method: "POST", body, headers, mode}).then(
                answer => answer.status, error => error.name));
    tries.push(new Promise(done => {
        const socket = new WebSocket(api.replace("http", "ws") + "/events/in", ["prefect"]);
        socket.onopen = () => done("open");
        socket.onerror = () => done("refused");
    }));
    return Promise.all(tries);
}"""


@pytest.fixture(scope="module")
def elsewhere():
    """A site on another port, under a name that means this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://evil.example:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def fooled():
    """A browser whose name server says that evil.example is this machine."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        rule = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server", rule]
        )
        yield opened
        opened.close()


def flows(workspace) -> list[str]:
    found = httpx.post(
        f"{workspace.api_url}/flows/filter", json={}, headers=workspace.headers, trust_env=False,
        timeout=60,
    )  # fmt: skip
    return [flow["name"] for flow in found.json()]


def test_a_page_of_another_site_gets_nothing_done(workspace, fooled, elsewhere):
    secret = workspace.environment["PREFECT_API_AUTH_STRING"]
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(elsewhere)
    *answers, socket = page.evaluate(ATTACK, [workspace.api_url, secret])
    assert set(answers) <= {"TypeError", 0}  # 0: the page does not learn that it is refused
    assert socket == "refused"
    # The same name now leads to the server itself, so that it is the page's own origin.
    port = urlsplit(workspace.api_url).port
    answer = page.goto(f"http://evil.example:{port}/")
    assert answer.status == 403
    answers = page.evaluate(ATTACK, [f"http://evil.example:{port}/api", secret])
    assert set(answers) <= {403, 0, "TypeError", "refused"}
    assert "attack" not in flows(workspace)


def test_the_login_page_enters_the_password(workspace, fooled):
    folder = Path(workspace.environment["PREFECT_HOME"]) / "torchyard"
    address = workspace.api_url.removesuffix("/api")
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    expect(page.get_by_role("button", name="Login")).to_be_visible(timeout=PATIENCE)
    page.goto(login_page(folder, address).as_uri())
    expect(page.get_by_role("button", name="Logout")).to_be_visible(timeout=PATIENCE)
    assert workspace.environment["PREFECT_API_AUTH_STRING"] not in page.url
    assert "#" not in page.url


def test_a_page_of_another_site_cannot_enter_a_password_of_its_own(workspace, fooled, elsewhere):
    folder = Path(workspace.environment["PREFECT_HOME"]) / "torchyard"
    address = workspace.api_url.removesuffix("/api")
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(login_page(folder, address).as_uri())
    expect(page.get_by_role("button", name="Logout")).to_be_visible(timeout=PATIENCE)
    kept = "localStorage.getItem('prefect-password')"
    before = page.evaluate(kept)
    for key in ("dG9yY2h5YXJkOmd1ZXNz", "", "not%20base64", "\\u0000"):
        page.goto(elsewhere)
        page.evaluate(f"location.href = '{address}/torchyard-login#{key}'")
        # Prefect's page forgets a password that it cannot try, as when it is left too soon.
        expect(page.get_by_role("button", name="Logout")).to_be_visible(timeout=PATIENCE)
        assert page.evaluate(kept) == before
