"""Copies of data elsewhere: over HTTP as it breaks, and of an S3 bucket."""

import hashlib
import multiprocessing
import random
import socket
import time

import pytest

from tests.bucket import s3_bucket
from tests.core.data.remote.web_server import web_server
from torchyard.core.data.remote import connection
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.remote.connection import BLOCK
from torchyard.core.data.remote.download import RemoteCopy
from torchyard.core.errors import UnreachableError, UserError

CONTENT = random.Random(0).randbytes(2 * BLOCK + 12_345)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(connection, "PAUSE", 0.01)
    with web_server() as server:
        server.files["/photos.tar.gz"] = CONTENT
        yield server


def copy(server, folder, end="", path="/photos.tar.gz"):
    return RemoteCopy(RemoteAddress.parse(server.address(path) + end), folder)


def test_it_is_downloaded_once(server, tmp_path):
    path, digest = copy(server, tmp_path).fetch()
    assert (path.read_bytes(), digest) == (CONTENT, DIGEST)
    assert path.name == "data-photos.tar.gz"
    before = len(server.sent)
    assert copy(server, tmp_path).fetch() == (path, DIGEST)
    assert len(server.sent) == before == 3


def test_another_version_is_downloaded_anew(server, tmp_path):
    before = copy(server, tmp_path).version()
    copy(server, tmp_path).fetch()
    server.files["/photos.tar.gz"] = CONTENT[::-1]
    path, digest = copy(server, tmp_path).fetch()
    assert path.read_bytes() == CONTENT[::-1]
    assert digest != DIGEST
    assert copy(server, tmp_path).version() != before


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.cuts = 2
    path, digest = copy(server, tmp_path).fetch()
    assert (path.read_bytes(), digest) == (CONTENT, DIGEST)


def test_what_has_come_is_kept_for_the_next_process(server, tmp_path):
    whole = copy(server, tmp_path)
    server.cuts = 10**6
    with pytest.raises(UnreachableError, match=r"/photos.tar.gz does not answer: .*3 times"):
        whole.fetch()
    part = next(tmp_path.rglob("part/*"))
    part.write_bytes(CONTENT[:BLOCK])  # as far as a longer try would have come
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [whole._folder.name]
    assert not whole._path.exists()
    server.cuts, server.sent = 0, []
    path, _ = copy(server, tmp_path).fetch()
    assert path.read_bytes() == CONTENT
    assert server.sent[0] == ("/photos.tar.gz", BLOCK)
    assert not [*tmp_path.rglob("part*")]


def test_what_has_come_of_another_version_is_not_gone_on_with(server, tmp_path):
    server.cuts = 10**6
    with pytest.raises(UnreachableError):
        copy(server, tmp_path).fetch()
    next(tmp_path.rglob("part/*")).write_bytes(CONTENT[:BLOCK])
    server.cuts, server.files["/photos.tar.gz"] = 0, CONTENT[::-1]
    path, _ = copy(server, tmp_path).fetch()
    assert path.read_bytes() == CONTENT[::-1]


def fetch_slowly(address, folder):
    connection._read = lambda *arguments, read=connection._read: (
        time.sleep(0.3),
        read(*arguments),
    )[1]
    RemoteCopy(RemoteAddress.parse(address), folder).fetch()


def test_a_process_that_is_killed_leaves_no_copy_and_the_next_goes_on(server, tmp_path):
    arguments = (server.address("/photos.tar.gz"), tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=fetch_slowly, args=arguments)
    process.start()
    deadline = time.monotonic() + 60
    while not [p for p in tmp_path.rglob("part/*") if p.stat().st_size] and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not copy(server, tmp_path)._path.exists()
    server.sent = []
    path, _ = copy(server, tmp_path).fetch()
    assert path.read_bytes() == CONTENT
    assert 0 < server.sent[0][1] < len(CONTENT)


def test_a_server_that_sends_no_parts(server, tmp_path):
    server.parts = False
    path, digest = copy(server, tmp_path).fetch()
    assert (path.read_bytes(), digest) == (CONTENT, DIGEST)


def test_a_digest_that_is_given_is_compared_and_nobody_asked_again(server, tmp_path):
    path, _ = copy(server, tmp_path, f"#sha256={DIGEST}").fetch()
    server.files.clear()
    assert copy(server, tmp_path, f"#sha256={DIGEST}").fetch() == (path, DIGEST)
    assert copy(server, tmp_path, f"#sha256={DIGEST}").version() == DIGEST


def test_another_digest_is_refused_and_nothing_kept(server, tmp_path):
    other = "0" * 64
    with pytest.raises(UserError, match=f"its sha256 is {DIGEST}, not {other}. It was not kept"):
        copy(server, tmp_path, f"#sha256={other}").fetch()
    assert not list(tmp_path.rglob("data-*"))


def test_nothing_of_that_name(server, tmp_path):
    with pytest.raises(UserError, match="there is nothing of that name") as caught:
        copy(server, tmp_path, path="/pictures.zip").fetch()
    assert not isinstance(caught.value, UnreachableError)


def test_a_server_that_is_away_leaves_the_copy_in_use(server, tmp_path, caplog):
    fetched = copy(server, tmp_path)
    expected = fetched.fetch(), fetched.version()
    server.shutdown()
    server.server_close()
    assert (fetched.fetch(), fetched.version()) == expected
    assert "The copy of it that is here is used." in caplog.text
    with pytest.raises(UnreachableError, match="does not answer"):
        copy(server, tmp_path, path="/other.zip").version()


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as bucket:
        bucket.put("photos.tar.gz", CONTENT)
        for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
            bucket.put(f"photos/{name}", name.encode())
        yield bucket


def test_a_file_of_a_bucket(bucket, tmp_path):
    copied = RemoteCopy(RemoteAddress.parse("s3://data/photos.tar.gz"), tmp_path)
    path, digest = copied.fetch()
    assert (path.read_bytes(), digest) == (CONTENT, DIGEST)
    assert copied.fetch() == (path, digest)


def test_a_folder_of_a_bucket_and_a_file_that_changes(bucket, tmp_path):
    copied = RemoteCopy(RemoteAddress.parse("s3://data/photos/"), tmp_path)
    path, digest = copied.fetch()
    names = {str(each.relative_to(path)) for each in path.rglob("*.png")}
    assert names == {"cat/1.png", "cat/2.png", "dog/1.png"}
    lines = [f"{hashlib.sha256(n.encode()).hexdigest()}  {n}\n" for n in sorted(names)]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    bucket.put("photos/dog/1.png", b"another")
    path, again = copied.fetch()
    assert again != digest
    assert (path / "dog/1.png").read_bytes() == b"another"


def test_what_a_bucket_lacks(bucket, tmp_path):
    for name in ("nothing.zip", "../secret"):
        with pytest.raises(UserError) as caught:
            RemoteCopy(RemoteAddress.parse(f"s3://data/{name}"), tmp_path).fetch()
        assert not isinstance(caught.value, UnreachableError)


def test_a_server_that_takes_connections_and_never_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        with pytest.raises(UnreachableError, match=r"/a.zip does not answer"):
            RemoteCopy(RemoteAddress.parse(address), tmp_path).fetch()
