"""A web server on this machine that sends parts, and breaks connections when it is told."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer(ThreadingHTTPServer):
    """Serves `files` by their paths.

    Attributes:
        files: contents by path, such as "/photos.zip".
        parts: whether it sends parts of files.
        cuts: how many of the next answers break off in the middle.
        sent: the ranges that were asked for, as (path, first byte).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.parts, self.cuts = True, 0
        self.sent: list[tuple[str, int]] = []

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_HEAD(self) -> None:
        if (content := self._found()) is not None:
            self._begin(200, content, len(content))

    def do_GET(self) -> None:
        if (content := self._found()) is None:
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, end, status = 0, len(content), 200
        if asked and self.server.parts:
            first, end, status = int(asked[1]), min(int(asked[2]) + 1, end), 206
        self.server.sent.append((self.path, first))
        self._begin(status, content, end - first, first)
        if self.server.cuts:
            self.server.cuts -= 1
            end = first + (end - first) // 2
            self.close_connection = True
        self.wfile.write(content[first:end])

    def _found(self) -> bytes | None:
        if (content := self.server.files.get(self.path)) is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return content

    def _begin(self, status: int, content: bytes, length: int, first: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        if self.server.parts:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            shown = f"bytes {first}-{first + length - 1}/{len(content)}"
            self.send_header("Content-Range", shown)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
