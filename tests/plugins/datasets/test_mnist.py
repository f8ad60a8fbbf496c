"""MNIST and Fashion-MNIST: downloaded or from a folder, read from IDX files."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.datasets.published_files import RNG, Server, prepared, problem
from torchyard.plugins.datasets.mnist import MNIST, FashionMNIST, Mnist
from torchyard.testing import assert_dataset_plugin


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
