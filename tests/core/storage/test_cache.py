"""Prepared data and downloads: what is in use stays, what is gone is prepared anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from torchyard import ArraySplit, DatasetParams, RawData
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.core.storage.cache import cached, delete_cached


class Toy(DatasetParams):
    """Four vectors."""

    value: float = 0.0

    def build(self, downloads):
        split = ArraySplit(np.full((4, 2), self.value, np.float32), np.arange(4) % 2)
        return RawData(("a", "b"), split, split, "toy")


@pytest.fixture(scope="module")
def cache_of_another(tmp_path_factory):
    """A cache with a data set that another process has prepared, which has ended."""
    cache = tmp_path_factory.mktemp("another")
    code = (
        "import sys, pathlib; from tests.core.storage.test_cache import Toy;"
        "from torchyard.core.preparation.prepare import prepare_dataset;"
        "print(prepare_dataset('toy', Toy(), pathlib.Path(sys.argv[1]), lambda *_: None).folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)],
        text=True,
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return cache, done.stdout.strip().rpartition("/")[2]


@pytest.fixture
def prepared(cache_of_another, tmp_path):
    """The folder of that data set, in a cache that is the test's own."""
    cache, name = cache_of_another
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    return tmp_path / "prepared" / name


def only(cache, kind="prepared"):
    [found] = [each for each in cached(cache) if each.kind == kind]
    return found


def test_prepared_data_that_nobody_uses_go_and_are_prepared_anew(prepared, tmp_path):
    found = only(tmp_path)
    assert (found.kept, found.paths, found.name) == ("", (prepared,), f"toy {prepared.name}")
    assert found.size == sum(each.stat().st_size for each in prepared.iterdir())
    assert delete_cached(found)
    assert not [each for each in prepared.parent.iterdir() if each.name.startswith(".pruned")]
    assert not [*(prepared.parent / "sources").glob("*.json")]
    assert find_prepared("toy", Toy(), tmp_path) is None
    assert prepare_dataset("toy", Toy(), tmp_path, lambda *_: None).folder == prepared


def test_prepared_data_in_use_stay(prepared, tmp_path):
    before = only(tmp_path)
    opened = PreparedDataset.open(prepared)
    assert only(tmp_path).kept == "a process uses it"
    assert not delete_cached(before)  # it was free a moment ago
    assert len(opened.train) == 4
    assert PreparedDataset.open(prepared).digest == opened.digest


def test_use_counts_as_use_and_not_the_day_of_the_preparation(prepared, tmp_path):
    os.utime(prepared / "manifest.json", (1, 1))
    assert only(tmp_path).used == 1
    PreparedDataset.open(prepared)
    assert only(tmp_path).used > 1_000_000


def test_a_folder_that_is_no_prepared_data_is_left_alone(prepared, tmp_path):
    for name in ("mine", "theirs"):
        (prepared.parent / name).mkdir()
    (prepared.parent / "theirs" / "manifest.json").write_text("{}")
    assert [each.paths for each in cached(tmp_path)] == [(prepared,)]


def test_downloads_stay_while_data_are_prepared(tmp_path):
    downloads, sources = tmp_path / "downloads", tmp_path / "prepared" / "sources"
    downloads.mkdir()
    sources.mkdir(parents=True)
    for name in ("a.tar.gz", "a.tar.gz.lock", "b.tar.gz.part", "scratch-1.tmp"):
        (downloads / name).write_bytes(b"123")
    found = only(tmp_path, "downloads")
    assert (found.name, found.size, found.kept) == ("a.tar.gz", 3, "")
    with FileLock(sources / "key.lock"):
        assert only(tmp_path, "downloads").kept == "data are being prepared"
        assert not delete_cached(found)
    assert delete_cached(found)
    assert not (downloads / "a.tar.gz").exists()


def test_what_torchyard_did_not_download_stays(tmp_path):
    for name in ("downloads/thesis.tex", "weights/mine.pt", "weights/m-" + "0a" * 16):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    kept = {each.name: each.kept for each in cached(tmp_path)}
    foreign = "torchyard did not download it"
    assert kept == {"thesis.tex": foreign, "mine.pt": foreign, "m-" + "0a" * 16: ""}


def test_an_index_that_is_damaged_hinders_nothing(prepared, tmp_path):
    (prepared.parent / "sources" / "odd.json").write_text("[1]")
    (prepared.parent / "sources" / "other.json").write_text(json.dumps({"folder": "x"}))
    assert delete_cached(only(tmp_path))
    left = {each.name for each in (prepared.parent / "sources").glob("*.json")}
    assert left == {"odd.json", "other.json"}
