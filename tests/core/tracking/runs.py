"""What the tests of runs share: starting one, reading it back, and a server that can go away."""

import dataclasses
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.ports import free_port
from torchyard.core.tracking.delivery import LogDelivery
from torchyard.core.tracking.ownership.process import ProcessIdentity
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.run_log import Line

CLASSES = ("cat", "狗", 'a"/b', "A__b")
SHAPE = (3, 8, 8)
# A process that is gone.
DEAD = str(dataclasses.replace(ProcessIdentity.of(os.getpid()), number=999999999))


def start(**parameters: object) -> RunRecord:
    return RunRecord.start(
        name_stem="lenet·sgd·toy", parameters=parameters, tags={"model": "lenet"}
    )


def stored(record: RunRecord):
    """The run as another client reads it."""
    from mlflow import MlflowClient

    return MlflowClient(record._uri).get_run(record.run_id)


def model_of(record: RunRecord) -> str:
    """The id of the one model a run has."""
    [output] = stored(record).outputs.model_outputs
    return output.model_id


def append_text(delivery: LogDelivery, text: str) -> None:
    """A line with a file, which is not sent yet."""
    file = delivery.attachment("a file")
    file.write_bytes(text.encode())
    name = str(file.relative_to(delivery.folder))
    delivery.log.append(Line("artifact", {"folder": None, "file": name}))


class Server:
    """MLflow's own server application over real HTTP, in a thread; it can go and come back.

    `mlflow server` as a program imports MLflow twice more: 15 seconds here.
    """

    def __init__(self) -> None:
        self.port = free_port()  # kept while it is away
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        import uvicorn
        from mlflow.server.fastapi_app import app

        config = uvicorn.Config(app, port=self.port, log_level="critical", lifespan="off")
        self._web = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._web.run)
        self._thread.start()
        while not self._web.started:
            time.sleep(0.02)

    def stop(self) -> None:
        self._web.should_exit = True
        self._thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing answers within; after it the same store does."""
        self.stop()
        try:
            yield
        finally:
            self.start()


class Proxy:
    """What stands before an MLflow server, and passes on requests unless told otherwise.

    Attributes:
        answer: status, headers and body given instead; None passes requests on.
        only: the method of the requests that it is given to; empty: all.
        delay: seconds before each answer.
    """

    def __init__(self, server: str) -> None:
        proxy = self
        self.answer: tuple[int, dict[str, str], str] | None = None
        self.only = ""
        self.delay = 0.0
        self.asked = 0
        self.closing = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                proxy.asked += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.closing.wait(proxy.delay)
                if proxy.answer is None or proxy.only not in ("", self.command):
                    status, headers, content = self._pass_on(body)
                else:
                    status, headers, text = proxy.answer
                    content = text.encode()
                with suppress(OSError):  # whoever asked has gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815

            def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                headers = {"Content-Type": self.headers.get("Content-Type", "")}
                if self.path.startswith("/login"):
                    return 200, {}, b"<html>Log in</html>"
                asked = urllib.request.Request(
                    f"{server}{self.path}", data=body or None, headers=headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(asked) as answer:
                        return answer.status, {"Content-Type": "application/json"}, answer.read()
                except urllib.error.HTTPError as error:
                    return error.code, {"Content-Type": "application/json"}, error.read()

            def log_message(self, *_: object) -> None:
                pass

        self._web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._web.daemon_threads = True
        self._web.block_on_close = False
        threading.Thread(target=self._web.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._web.server_port}"

    def close(self) -> None:
        self.closing.set()
        self._web.shutdown()
        self._web.server_close()
