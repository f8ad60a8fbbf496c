"""Who may use the Prefect server that torchyard starts: whoever knows its password, from here.

Who uses the server can have commands run: a deployment's. So it asks for a password, Prefect's own
authentication string, which only the user's own processes can read. And a web page that is open in
the user's browser gets no answer: a page of another site, or one whose name its owner has made to
mean 127.0.0.1, says so in the headers `Origin` and `Host` of its requests.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shlex
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchyard.core.data.files import atomic_write
from torchyard.core.proxies import LOOPBACK

PASSWORD_FILE = "password"  # in the state folder; whole, it is what Prefect's UI asks for
LOGIN_PATH = "/torchyard-login"

# Prefect's UI keeps the password so. What follows the # is not sent to any server. It is kept once
# the API takes it: any page can lead the browser here, with a password of its own.
LOGIN_PAGE = b"""<!doctype html><script>
const key = location.hash.slice(1), headers = {Authorization: "Basic " + key};
fetch("/api/admin/version", {headers}).then(answer => {
    if (answer.ok) localStorage.setItem("prefect-password", key);
}).finally(() => location.replace("/"));
</script>"""
GREETING_SECONDS = 10.0  # in which a websocket must send its first message, the password

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def password(folder: Path) -> str:
    """The password of the server of a `private_folder`, made where there is none."""
    file = folder / PASSWORD_FILE
    if not file.exists() or not file.read_bytes().strip():
        _write_private(file, f"torchyard:{secrets.token_urlsafe(24)}\n")
    return file.read_text("utf-8").strip()


def authorization(password: str) -> dict[str, str]:
    """The header that Prefect's API asks for."""
    return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}


def how_to_get_in(folder: Path, api_url: str) -> list[str]:
    """What a person does to use the server: in the browser, and with Prefect's own commands."""
    file = shlex.quote(str(folder / PASSWORD_FILE))
    return [
        "Prefect asks for a password. In the browser `torchyard ui --prefect` enters it. "
        "For Prefect's own commands:",
        f'  export PREFECT_API_URL={api_url} PREFECT_API_AUTH_STRING="$(cat {file})"',
    ]


def login_page(folder: Path, address: str) -> Path:
    """A page for the browser that enters the password of the server at `address`.

    A file, which nobody else can read: an address would stand in the browser's command line.
    """
    file = folder / "login.html"
    key = base64.b64encode(password(folder).encode()).decode()
    script = f'location.replace("{address}{LOGIN_PATH}#{key}")'
    _write_private(file, f"<!doctype html><script>{script}</script>\n")
    return file


def _write_private(file: Path, text: str) -> None:
    with atomic_write(file) as made:
        os.fchmod(made.fileno(), 0o600)
        made.write(text.encode())


class OwnPagesOnly:
    """Refuses what pages of other origins ask an ASGI application, websockets included."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 403, with the page that enters the password, or as the application does."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not is_own_page(scope["headers"]):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await _answer(send, 403, b"text/plain", b"Only this machine's own pages may ask.\n")
        elif scope["type"] == "http" and scope["path"] == LOGIN_PATH:
            await _answer(send, 200, b"text/html", LOGIN_PAGE)
        elif scope["type"] == "websocket":
            await self._app(scope, _greeted(receive, send), send)
        else:
            await self._app(scope, receive, send)


def _greeted(receive: Receive, send: Send) -> Receive:
    """A `receive` by which a websocket ends that is open and does not say who it is.

    Prefect asks for the password in the first message, and waits for it for ever.
    """
    received = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal received
        received += 1
        if received != 2:  # the first is the connection itself
            return await receive()
        try:
            return await asyncio.wait_for(receive(), GREETING_SECONDS)
        except TimeoutError:
            await send({"type": "websocket.close", "code": 1008})
            return {"type": "websocket.disconnect", "code": 1008}

    return limited


def is_own_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request came to this machine's own name, and from no page of another origin."""
    values: dict[bytes, list[str]] = {b"host": [], b"origin": []}
    for name, value in headers:
        if name in values:
            values[name].append(value.decode("latin-1").lower())
    if len(values[b"host"]) != 1:
        return False
    [host] = values[b"host"]
    try:
        local = urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False
    return local and set(values[b"origin"]) <= {f"http://{host}"}


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
