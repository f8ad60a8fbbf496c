"""CIFAR: downloaded or from a folder, read without running its pickles."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.datasets.published_files import (
    NAMES,
    RNG,
    Server,
    archive,
    cifar10_members,
    prepared,
    problem,
)
from torchyard.plugins.datasets.cifar import CIFAR10, CIFAR100
from torchyard.testing import assert_dataset_plugin


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
    def refusal(**changed: Any) -> str:
        members = {k: v for k, v in {**cifar10_members(1), **changed}.items() if v is not None}
        checksum = archive(members, tmp_path / "cifar-10-python.tar.gz")
        return problem(CIFAR10(path=tmp_path, checksum=checksum), tmp_path / "cache")

    assert "it lacks data_batch_2, test_batch" in refusal(data_batch_2=None, test_batch=None)
    assert "test_batch in" in refusal(test_batch=b"\x80\x02}")
    assert "is not in cifar10's format" in refusal(test_batch={"data": np.zeros((2, 99), np.uint8)})
    assert "is not a dictionary" in refusal(test_batch=pickle.dumps([1], 2))
    assert "has no 'label_names'" in refusal(**{"batches.meta": {}})
    wrong = {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}
    assert "test labels are out of range: 10" in refusal(test_batch=wrong)


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
