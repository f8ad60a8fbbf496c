"""CIFAR and MNIST by their own way: download, checksum, unpack, read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from torchyard import PreparedDataset, UserError
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.plugins.datasets.cifar import CIFAR10, CIFAR100
from torchyard.plugins.datasets.mnist import MNIST, FashionMNIST, Mnist
from torchyard.testing import assert_dataset_plugin

RNG = np.random.default_rng(5)
NAMES = ["airplane", "automobile", "bird", "cat", "deer"]
NAMES += ["dog", "frog", "horse", "ship", "truck"]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; breaks off half-way in files named in `broken`."""

    requests: list[str]
    broken: set[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path not in self.broken:
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.handler = type("OwnHandler", (Handler,), {"requests": [], "broken": set()})
        self.http = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(self.handler, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(tmp_path / "served")
    yield running
    running.stop()


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """A pickle as Python 2 wrote CIFAR's: protocol 2, the text being byte strings."""

    class Old(pickle._Pickler):  # the one in Python: its dispatch table can be changed
        dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

        def save_text(self, text: str | bytes) -> None:
            data = text.encode("latin1") if isinstance(text, str) else text
            head = (
                b"U" + bytes([len(data)])
                if len(data) < 256
                else b"T" + len(data).to_bytes(4, "little")
            )
            self.write(head + data)
            self.memoize(text)

        dispatch[str] = save_text
        dispatch[bytes] = save_text

    buffer = io.BytesIO()
    Old(buffer, protocol=2).dump(batch)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10_members(images: int = 20) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        members[name] = {
            "batch_label": f"of {name}",
            "labels": [n % 10 for n in range(images)],
            "data": RNG.integers(0, 256, (images, 3072), dtype=np.uint8),
            "filenames": [f"{n}.png" for n in range(images)],
        }
    members["batches.meta"] = {"num_cases_per_batch": images, "label_names": NAMES, "num_vis": 3072}
    return members


def archive(members: dict[str, Any], path: Path, folder: str = "cifar-10-batches-py") -> str:
    """Write the members as CIFAR's archive is; gives its md5."""
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else python2_pickle(content)
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return hashlib.md5(path.read_bytes()).hexdigest()


def prepared(params: Any, cache: Path) -> PreparedDataset:
    return prepare_dataset(params.dataset, params, cache, lambda *_: None)


def problem(params: Any, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepared(params, cache)
    left = [f.name for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock"]
    assert not [name for name in left if name.endswith((".part", ".npy", ".json"))]
    (only,) = caught.value.problems
    assert only.startswith(f"dataset {params.dataset}: ")
    return only


# ---- CIFAR ----


def test_cifar10_is_downloaded_verified_and_read(server: Server, tmp_path: Path) -> None:
    members = cifar10_members()
    checksum = archive(members, server.folder / "cifar-10-python.tar.gz")
    cache = tmp_path / "cache"
    params = CIFAR10(mirror=server.address, checksum=checksum)
    found = prepared(params, cache)
    assert found.classes == tuple(NAMES)
    assert found.spec == params.describe()
    assert found.counts == {"train": 100, "test": 20}
    expected = np.concatenate([members[f"data_batch_{n}"]["data"] for n in range(1, 6)])
    np.testing.assert_array_equal(found.train.samples.reshape(100, 3072), expected)
    np.testing.assert_array_equal(
        found.test.samples.reshape(20, 3072), members["test_batch"]["data"]
    )
    assert found.train.labels.tolist() == [n % 10 for n in range(20)] * 5
    assert found.source == f"{server.address}/cifar-10-python.tar.gz"
    assert server.handler.requests == ["/cifar-10-python.tar.gz"]
    kept = cache / "downloads/cifar10/cifar-10-python.tar.gz"
    assert hashlib.md5(kept.read_bytes()).hexdigest() == checksum
    assert_dataset_plugin(params, tmp_path / "kit")
    # What was downloaded serves other parameters too, without a connection.
    server.stop()
    again = CIFAR10(mirror=server.address + "/", checksum=checksum)
    assert prepared(again, cache).digest == found.digest


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


def test_without_a_connection_three_ways_on_are_named(server: Server, tmp_path: Path) -> None:
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
    assert f"it broke off after {size // 2} of {size} bytes" in problem(params, cache)
    server.handler.broken.clear()
    assert len(prepared(params, cache).train) == 100


class Command:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "malicious",
    [
        pickle.dumps(Command()),
        pickle.dumps({"data": Command()}, protocol=2),
        b'cbuiltins\neval\n(S\'open("executed", "w")\'\ntR.',
        b"cnumpy\nload\n(S'x'\ntR.",
    ],
)
def test_a_pickle_that_would_run_something_is_refused(
    tmp_path: Path, malicious: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = {**cifar10_members(1), "data_batch_3": malicious}
    checksum = archive(members, tmp_path / "cifar-10-python.tar.gz")
    message = problem(CIFAR10(path=tmp_path, checksum=checksum), tmp_path / "cache")
    assert "data_batch_3" in message
    assert "which no array needs" in message
    assert not (tmp_path / "executed").exists()


def test_contents_that_are_not_cifar(tmp_path: Path) -> None:
    def told(**changed: Any) -> str:
        members = {k: v for k, v in {**cifar10_members(1), **changed}.items() if v is not None}
        checksum = archive(members, tmp_path / "cifar-10-python.tar.gz")
        return problem(CIFAR10(path=tmp_path, checksum=checksum), tmp_path / "cache")

    assert "it lacks data_batch_2, test_batch" in told(data_batch_2=None, test_batch=None)
    assert "test_batch in" in told(test_batch=b"\x80\x02}")
    assert "is not in cifar10's format" in told(test_batch={"data": np.zeros((2, 99), np.uint8)})
    assert "is not a dictionary" in told(test_batch=pickle.dumps([1], 2))
    assert "has no 'label_names'" in told(**{"batches.meta": {}})
    wrong = {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}
    assert "test labels are out of range: 10" in told(test_batch=wrong)


def test_a_present_folder_is_read_without_a_download(tmp_path: Path) -> None:
    members = cifar10_members()
    folder = tmp_path / "present"
    folder.mkdir()
    checksum = archive(members, folder / "cifar-10-python.tar.gz")
    packed = prepared(CIFAR10(path=folder, checksum=checksum), tmp_path / "cache")
    assert packed.source == str(folder / "cifar-10-python.tar.gz")
    file = CIFAR10(path=folder / "cifar-10-python.tar.gz", checksum=checksum)
    assert prepared(file, tmp_path / "cache").digest == packed.digest
    assert "is damaged, cut short or another file" in problem(CIFAR10(path=folder), tmp_path / "c")
    with tarfile.open(folder / "cifar-10-python.tar.gz") as whole:
        whole.extractall(folder, filter="data")
    (folder / "cifar-10-python.tar.gz").unlink()
    for path in (folder, folder / "cifar-10-batches-py"):
        assert prepared(CIFAR10(path=path), tmp_path / "cache").digest == packed.digest
    (folder / "cifar-10-batches-py/data_batch_4").unlink()
    message = problem(CIFAR10(path=folder), tmp_path / "c")
    assert message.endswith("missing: data_batch_4")


def test_a_truncated_archive_with_its_own_checksum(tmp_path: Path) -> None:
    file = tmp_path / "cifar-10-python.tar.gz"
    archive(cifar10_members(), file)
    os.truncate(file, file.stat().st_size // 2)
    checksum = hashlib.md5(file.read_bytes()).hexdigest()
    message = problem(CIFAR10(path=tmp_path, checksum=checksum), tmp_path / "cache")
    assert f"{file} is damaged or cut short" in message


def test_cifar100_has_the_fine_classes(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(100)]
    labels = list(range(100))

    def part(count: int) -> dict[str, Any]:
        data = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": data, "fine_labels": labels[:count], "coarse_labels": [0] * count}

    members = {"meta": {"fine_label_names": names, "coarse_label_names": ["all"]}}
    members |= {"train": part(100), "test": part(7)}
    checksum = archive(members, tmp_path / "cifar-100-python.tar.gz", "cifar-100-python")
    params = CIFAR100(path=tmp_path, checksum=checksum)
    found = prepared(params, tmp_path / "cache")
    assert found.classes == tuple(names)
    assert found.train.labels.tolist() == labels
    assert found.spec == params.describe()
    assert_dataset_plugin(params, tmp_path / "kit")


def test_parameters_are_checked(tmp_path: Path) -> None:
    for wrong in ({"mirror": "ftp://x"}, {"checksum": "abc"}, {"path": tmp_path / "no"}, {"x": 1}):
        with pytest.raises(ValidationError):
            CIFAR10.model_validate(wrong)


# ---- MNIST ----


def idx(array: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def mnist_files() -> dict[str, np.ndarray[Any, Any]]:
    def part(count: int) -> tuple[Any, Any]:
        return RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10

    arrays = [array.astype(np.uint8) for count in (30, 10) for array in part(count)]
    return dict(zip(Mnist.files, arrays, strict=True))


@pytest.mark.parametrize("base", [MNIST, FashionMNIST])
def test_mnist_is_downloaded_verified_and_read(
    server: Server, tmp_path: Path, base: type[Mnist]
) -> None:
    sums = []
    arrays = mnist_files()
    for name, array in arrays.items():
        data = gzip.compress(idx(array))
        (server.folder / f"{name}.gz").write_bytes(data)
        sums.append(hashlib.md5(data).hexdigest())

    class Small(base):  # type: ignore[valid-type, misc]
        checksums = tuple(sums)

    params = Small(mirror=server.address)
    found = prepared(params, tmp_path / "cache")
    assert found.spec == params.describe()
    np.testing.assert_array_equal(found.train.samples[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(found.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert len(server.handler.requests) == 4
    refused = problem(base(mirror=server.address), tmp_path / "other")
    assert base.checksums[0] in refused
    assert sums[0] in refused


def test_mnist_from_a_present_folder(tmp_path: Path) -> None:
    arrays = mnist_files()
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    plain = prepared(MNIST(path=tmp_path), tmp_path / "cache")
    for params in (MNIST(path=tmp_path), FashionMNIST(path=folder)):
        assert_dataset_plugin(params, tmp_path / "kit")
    for name in arrays:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert prepared(MNIST(path=folder), tmp_path / "cache").digest == plain.digest
    cut = folder / "t10k-images-idx3-ubyte.gz"
    os.truncate(cut, cut.stat().st_size - 20)
    assert f"{cut} is damaged or cut short" in problem(MNIST(path=folder), tmp_path / "c")
    cut.write_bytes(gzip.compress(idx(arrays["t10k-images-idx3-ubyte"])[:-5]))
    assert f"{cut} is damaged or cut short" in problem(MNIST(path=folder), tmp_path / "c")
    cut.write_bytes(b"something else")
    assert f"{cut} is not an IDX file" in problem(MNIST(path=folder), tmp_path / "c")
    cut.unlink()
    assert "missing: t10k-images-idx3-ubyte" in problem(MNIST(path=folder), tmp_path / "c")


# ---- torchvision's word ----


def test_addresses_checksums_and_names_are_torchvisions() -> None:
    from torchvision import datasets

    for ours, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert ours.model_fields["checksum"].default == theirs.tgz_md5
        assert (ours.url, ours.archive) == (theirs.url, theirs.filename)
        assert ours.folders == (theirs.base_folder,)
        listed = [name for name, _ in theirs.train_list + theirs.test_list]
        assert sorted(ours.files) == sorted([*listed, theirs.meta["filename"]])
        assert list(ours.tests) == [name for name, _ in theirs.test_list]
        assert (ours.meta, ours.names_key) == (theirs.meta["filename"], theirs.meta["key"])
    for ours_idx, theirs_idx in ((MNIST, datasets.MNIST), (FashionMNIST, datasets.FashionMNIST)):
        assert list(ours_idx.mirrors) == theirs_idx.mirrors
        files = [f"{name}.gz" for name in ours_idx.files]
        assert list(zip(files, ours_idx.checksums, strict=True)) == theirs_idx.resources
    assert list(FashionMNIST.classes) == datasets.FashionMNIST.classes
