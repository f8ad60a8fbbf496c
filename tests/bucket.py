"""A bucket of moto's S3 server, behind a proxy that breaks connections when it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

NAME = "data"


@dataclass
class Bucket:
    """A bucket that the environment's AWS_ENDPOINT_URL leads to.

    Attributes:
        client: boto3's, past the proxy.
        whole: bytes in one direction of a connection before it breaks; None: it does not.
        cuts: how many connections break after so many bytes, before all others go on.
        seen: how many have been broken.
    """

    client: Any
    whole: int | None = None
    cuts: int = 0
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=NAME, Prefix=prefix)
        return [each["Key"] for each in found.get("Contents", [])]

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=NAME, Key=name)["Body"].read()

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=name, Body=content)

    def clear(self) -> None:
        for name in self.names():
            self.client.delete_object(Bucket=NAME, Key=name)

    def break_connections(self, after: int, cuts: int) -> None:
        self.whole, self.cuts, self.seen = after, cuts, 0

    def breaks(self, sent: int) -> bool:
        with self.lock:
            if self.whole is None or sent <= self.whole or not self.cuts:
                return False
            self.cuts -= 1
            self.seen += 1
            return True


@contextlib.contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """A bucket named `data`, and the environment that leads to it."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    listening = socket.create_server(("127.0.0.1", 0))
    with pytest.MonkeyPatch.context() as patch, listening:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket=NAME)
        bucket = Bucket(client)
        threading.Thread(
            target=_accept, args=(listening, (host, port), bucket), daemon=True
        ).start()
        try:
            yield bucket
        finally:
            server.stop()


def _accept(listening: socket.socket, server: tuple[str, int], bucket: Bucket) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(server)
            for source, target in ((near, far), (far, near)):
                pair = (source, target, bucket)
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, bucket: Bucket) -> None:
    sent = 0
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sent += len(data)
            if bucket.breaks(sent):
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
