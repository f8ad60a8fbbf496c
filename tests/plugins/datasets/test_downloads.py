"""Downloads: mirrors, checksums, and servers that fail."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.plugins.datasets.published_files import (
    Server,
    archive,
    cifar10_members,
    prepared,
    problem,
)
from torchyard.plugins.datasets.cifar import CIFAR10


@pytest.mark.parametrize("way", ["address", "file", "sha256"])
def test_other_ways_to_name_a_mirror(server: Server, tmp_path: Path, way: str) -> None:
    file = server.folder / "repacked.tgz"
    checksum = archive(cifar10_members(2), file)
    mirror = f"{server.address}/repacked.tgz" if way != "file" else file.as_uri()
    if way == "sha256":
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(prepared(CIFAR10(mirror=mirror, checksum=checksum), tmp_path / "cache").train) == 10


def test_a_changed_byte_is_refused(server: Server, tmp_path: Path) -> None:
    file = server.folder / "cifar-10-python.tar.gz"
    checksum = archive(cifar10_members(2), file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = problem(CIFAR10(mirror=server.address, checksum=checksum), tmp_path / "cache")
    assert checksum in message
    assert hashlib.md5(content).hexdigest() in message
    assert not (tmp_path / "cache/downloads/cifar10/cifar-10-python.tar.gz").exists()


def test_without_a_connection_other_ways_are_named(server: Server, tmp_path: Path) -> None:
    server.stop()
    message = problem(CIFAR10(mirror=server.address), tmp_path / "cache")
    assert f"{server.address}/cifar-10-python.tar.gz: [Errno 111] Connection refused" in message
    for way in ("dataset.mirror=", "dataset.path=", "'digits'"):
        assert way in message


def test_a_server_without_the_file(server: Server, tmp_path: Path) -> None:
    assert "HTTP Error 404" in problem(CIFAR10(mirror=server.address), tmp_path / "cache")
    assert "No such file" in problem(CIFAR10(mirror="file:///nowhere"), tmp_path / "cache")


def test_an_address_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    message = problem(CIFAR10(mirror="http://torchyard.invalid/data"), tmp_path / "cache")
    assert "http://torchyard.invalid/data/" in message


def test_a_server_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("torchyard.plugins.datasets.downloads.TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "timed out" in problem(CIFAR10(mirror=address), tmp_path / "cache")


def test_an_interrupted_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    file = server.folder / "cifar-10-python.tar.gz"
    checksum = archive(cifar10_members(), file)
    server.handler.broken.add(f"/{file.name}")
    params, cache = CIFAR10(mirror=server.address, checksum=checksum), tmp_path / "cache"
    size = file.stat().st_size
    assert f"the connection broke off after {size // 2} of {size} bytes" in problem(params, cache)
    server.handler.broken.clear()
    assert len(prepared(params, cache).train) == 100
