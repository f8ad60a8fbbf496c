"""Preparation: what is found again, and what a bad end leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.preparation.raw_data import (
    TWO,
    dataset,
    image_files,
    image_split,
    images,
    prepared,
    quiet,
    raw,
    start,
)
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.images.reading import ImageReading
from torchyard.core.data.raw import ArraySplit, RawData, SampleSplit
from torchyard.core.errors import RunError, UserError
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    content = raw()
    first = prepared(content, tmp_path / "a")
    assert prepared(content, tmp_path / "b").digest == first.digest
    train: Any = content.train
    stream = SampleSplit(zip(train.samples, train.labels, strict=True), 6)
    assert prepared(raw(stream, content.test), tmp_path / "c").digest == first.digest
    flipped = ArraySplit(train.samples, 1 - train.labels)
    assert prepared(raw(flipped, content.test), tmp_path / "d").digest != first.digest
    other = raw(train, content.test, ("cat", "cow"))
    assert prepared(other, tmp_path / "e").digest != first.digest


def test_a_second_run_builds_nothing(tmp_path: Path) -> None:
    params = dataset(lambda _: raw())
    assert find_prepared("given", params(), tmp_path) is None
    first = prepare_dataset("given", params(), tmp_path, quiet)
    assert prepare_dataset("given", params(), tmp_path, quiet) == first
    assert params.builds == [tmp_path / "downloads"]
    assert find_prepared("given", params(), tmp_path) == first
    assert find_prepared("given", params(tag=1), tmp_path) is None
    assert find_prepared("other", params(), tmp_path) is None
    changed = dataset(lambda _: raw(), fingerprint="changed")
    assert find_prepared("given", changed(), tmp_path) is None


def test_equal_content_is_stored_once_under_each_name(tmp_path: Path) -> None:
    content = raw()
    one = prepare_dataset("one", dataset(lambda _: content)(), tmp_path, quiet)
    two = prepare_dataset("two", dataset(lambda _: content)(), tmp_path, quiet)
    assert one.folder == two.folder
    assert (one.name, two.name) == ("one", "two")


def test_notes_are_kept_and_belong_to_their_source(tmp_path: Path) -> None:
    content = raw()
    params = dataset(lambda _: replace(content, notes=["3 files are left out"]))
    first = prepare_dataset("one", params(), tmp_path, quiet)
    other = prepare_dataset("two", dataset(lambda _: content)(), tmp_path, quiet)
    again = find_prepared("one", params(), tmp_path)
    assert again is not None
    assert first.notes == again.notes == ("3 files are left out",)
    assert PreparedDataset.open(first.folder).notes == first.notes
    assert other.notes == PreparedDataset.open(other.folder).notes == ()
    assert first.digest == other.digest


def test_a_class_without_a_test_sample_is_noted(tmp_path: Path) -> None:
    content = raw(classes=("cat", "cow", "dog", *map(str, range(9))))
    *_, note = prepared(content, tmp_path).notes
    assert note.startswith("no test sample is of 10 of 12 classes, whose accuracy is not known")


@pytest.mark.parametrize("damaged", ["train_samples.npy", "test_labels.npy", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "removed"])
def test_damage_is_repaired(tmp_path: Path, damaged: str, how: str) -> None:
    params = dataset(lambda _: raw_fixed)
    raw_fixed = raw()
    first = prepare_dataset("given", params(), tmp_path, quiet)
    expected = np.array(first.train.samples)
    file = first.folder / damaged
    if how == "cut":
        os.truncate(file, file.stat().st_size - 7)
    else:
        file.unlink()
    assert find_prepared("given", params(), tmp_path) is None
    again = prepare_dataset("given", params(), tmp_path, quiet)
    assert again == first
    np.testing.assert_array_equal(again.train.samples, expected)


@pytest.mark.parametrize("damaged", ["train_samples.npy", "test_labels.npy"])
def test_contents_that_are_not_what_was_written_are_prepared_anew(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = raw()
    params = dataset(lambda _: content)
    first = prepare_dataset("given", params(), tmp_path, quiet)
    expected, labels = np.array(first.train.samples), first.test.labels
    array = np.load(first.folder / damaged, mmap_mode="r+")
    array[-1:] = 0 if damaged == "train_samples.npy" else 7
    array.flush()
    again = prepare_dataset("given", params(), tmp_path, quiet)
    assert again == first
    assert len(params.builds) == 2
    assert f"{first.folder} is damaged: {damaged}" in caplog.text
    np.testing.assert_array_equal(again.train.samples, expected)
    np.testing.assert_array_equal(again.test.labels, labels)
    assert prepare_dataset("given", params(), tmp_path, quiet) == first
    assert len(params.builds) == 2


@pytest.mark.parametrize("change", [b"\xff\xfe", b"[]", b"{}", b"null", b"0.25"])
def test_a_damaged_manifest_is_prepared_anew(tmp_path: Path, change: bytes) -> None:
    content = raw()
    params = dataset(lambda _: content)
    first = prepare_dataset("given", params(), tmp_path, quiet)
    manifest = first.folder / "manifest.json"
    whole = manifest.read_bytes()
    if change == b"0.25":  # still a manifest
        change = re.sub(rb'"std": \[\s*[\d.]+', b'"std": [0.25', whole)
        assert change != whole
    manifest.write_bytes(change)
    assert find_prepared("given", params(), tmp_path) is None
    assert prepare_dataset("given", params(), tmp_path, quiet) == first
    assert manifest.read_bytes() == whole


@pytest.mark.parametrize("entry", [b"\xff", b"[]", b'{"folder": 3}', b'{"folder": "../x"}'])
def test_a_damaged_index_is_prepared_anew(tmp_path: Path, entry: bytes) -> None:
    content = raw()
    params = dataset(lambda _: content)
    first = prepare_dataset("given", params(), tmp_path, quiet)
    (index,) = (tmp_path / "prepared/sources").glob("*.json")
    index.write_bytes(entry)
    assert prepare_dataset("given", params(), tmp_path, quiet) == first


def test_files_of_the_same_size_and_time_are_compared_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    files = image_files(tmp_path / "images", 6)
    content = raw(image_split(files[:4]), image_split(files[4:]))
    params = dataset(lambda _: content)
    verifying = ImageReading(verify=True)

    def prepare(reading: ImageReading) -> tuple[PreparedDataset, set[str]]:
        seen = set[str]()
        follow = lambda verb, *_: seen.add(verb)  # noqa: E731
        return prepare_dataset("given", params(), tmp_path, follow, reading), seen

    first, seen = prepare(ImageReading())
    assert seen == {"decoding given"}
    assert prepare(verifying) == (first, {"comparing given"})
    files[5].write_bytes(files[0].read_bytes())
    assert prepare(ImageReading()) == (first, set())  # names, sizes and times alone
    changed, seen = prepare(verifying)
    assert seen == {"comparing given", "decoding given"}
    assert changed.digest != first.digest
    assert prepare(ImageReading())[0] == changed
    array = np.load(changed.folder / "train_samples.npy", mmap_mode="r+")
    array[0] = 0
    array.flush()
    assert "decoding given" in prepare(verifying)[1]


def test_a_source_that_is_no_file_is_prepared_anew_to_be_compared(tmp_path: Path) -> None:
    content = [raw(), raw()]
    params = dataset(lambda _: content[0])
    first = prepare_dataset("given", params(), tmp_path, quiet)
    verifying = ImageReading(verify=True)
    assert prepare_dataset("given", params(), tmp_path, quiet, verifying) == first
    content.pop(0)
    assert prepare_dataset("given", params(), tmp_path, quiet, verifying).digest != first.digest


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    rename, fsync = Path.rename, os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def check(self: Path, target: Path) -> Path:
        arrays = [
            f"{part}_{what}.npy" for part in ("train", "test") for what in ("samples", "labels")
        ]
        assert {*arrays, self.name} <= {*synced}
        assert any(name.endswith("manifest.json") for name in synced)
        assert synced.index(self.name) > max(map(synced.index, arrays))
        synced.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    prepared(raw(), tmp_path)
    assert "prepared" in synced[synced.index("renamed") :]


def test_a_plugin_bug_is_a_failed_run_with_its_traceback(tmp_path: Path) -> None:
    def build(_: Path) -> RawData:
        return {}["missing"]

    with pytest.raises(RunError, match="data set 'given' failed: KeyError: 'missing'") as caught:
        prepare_dataset("given", dataset(build)(), tmp_path, quiet)
    assert 'return {}["missing"]' in caught.value.details


@pytest.mark.parametrize(
    ("method", "made", "problem"),
    [
        ("build", lambda *_: [], "build() returns a list, not a RawData"),
        ("fingerprint", lambda _: ["a"], "fingerprint() returns a list, not a text"),
        ("fingerprint", lambda _: {}["a"], "fingerprint() raises KeyError: 'a'"),
        ("fingerprint", lambda _: sys.exit(0), "fingerprint() raises SystemExit: 0"),
    ],
)
def test_a_method_of_another_form_is_its_authors_to_correct(
    tmp_path: Path, method: str, made: Callable[..., Any], problem: str
) -> None:
    given = type("Given", (dataset(lambda _: raw()),), {method: made})
    with pytest.raises(UserError) as caught:
        prepare_dataset("given", given(), tmp_path, quiet)
    assert caught.value.problems == [f"dataset given: {problem}"]
    assert not list(tmp_path.rglob("*.npy"))


SLOW = """
    import sys, time
    from pathlib import Path
    from typing import Any
    import numpy as np
    from torchyard import DatasetParams, RawData, SampleSplit
    from torchyard.core.preparation.prepare import prepare_dataset

    def stream(folder, seconds):
        for number in range(60):
            if number == 30:
                (folder / "half").touch()
                time.sleep(seconds)
            yield np.full((3, 8, 8), number, np.uint8), number % 2

    class Slow(DatasetParams):
        folder: Path
        seconds: float

        def build(self, downloads):
            with (self.folder / "builds").open("a") as log:
                log.write("built\\n")
            return RawData(
                ["a", "b"],
                SampleSplit(stream(self.folder, self.seconds), 60),
                SampleSplit(stream(self.folder, 0), 60),
            )
"""


def start_slow(script: str, folder: Path, *arguments: Any) -> subprocess.Popen[str]:
    return start(textwrap.dedent(SLOW) + textwrap.dedent(script), folder, *arguments)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    script = """
        folder = Path(sys.argv[1])
        found = prepare_dataset(
            "slow", Slow(folder=folder, seconds=float(sys.argv[2])), folder, lambda *_: None
        )
        print(found.digest)
    """
    process = start_slow(script, tmp_path, 60)
    wait_for((tmp_path / "half").exists)
    process.kill()
    process.wait()
    (leftover,) = (tmp_path / "prepared").glob("*.tmp")
    assert not list((tmp_path / "prepared").glob("*/manifest.json"))
    prepared(raw(), tmp_path)  # another data set in the same cache clears up
    assert not leftover.exists()
    again = start_slow(script, tmp_path, 60.0)
    (tmp_path / "half").unlink()
    wait_for((tmp_path / "half").exists)
    prepared(raw(ArraySplit(images(2), TWO)), tmp_path)
    assert list((tmp_path / "prepared").glob("*.tmp")), "the work of a living process was removed"
    again.kill()
    again.wait()
    finished, _ = start_slow(script, tmp_path, 0).communicate(timeout=120)
    assert len(finished.strip()) == 64


def test_two_processes_prepare_the_same_at_once(tmp_path: Path) -> None:
    script = """
        folder = Path(sys.argv[1])
        found = prepare_dataset("slow", Slow(folder=folder, seconds=1), folder, lambda *_: None)
        print(found.digest, len(found.train))
    """
    both = [start_slow(script, tmp_path), start_slow(script, tmp_path)]
    answers = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert (tmp_path / "builds").read_text().count("built") == 1


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("given", dataset(lambda _: raw())(), tmp_path, interrupted)
    assert not list((tmp_path / "prepared").glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.touch()
    with pytest.raises(UserError, match=f"cannot prepare in {cache}: .*Not a directory"):
        prepared(raw(), cache)


@pytest.fixture
def small_disk(disk: Callable[[str], Path]) -> Path:
    return disk("2m")


def test_a_disk_too_small_is_reported_before_anything_is_written(small_disk: Path) -> None:
    many, few = images(1000, 3, 32, 32), images(2, 3, 32, 32)
    content = raw(ArraySplit(many, np.zeros(1000, int)), ArraySplit(few, TWO))
    begun: list[Any] = []
    with pytest.raises(RunError) as caught:
        prepare_dataset(
            "given",
            dataset(lambda _: content)(),
            small_disk,
            lambda *progress: begun.append(progress),
        )
    assert not begun
    message = str(caught.value)
    assert str(small_disk) in message
    assert "3.09 MB" in message
    assert not list((small_disk / "prepared").glob("*.tmp"))


def test_a_disk_that_fills_up_leaves_nothing(small_disk: Path) -> None:
    filler = small_disk / "filler"

    def stream() -> Iterator[tuple[Any, int]]:
        for number in range(300):
            if number == 10:
                filler.write_bytes(bytes(1_500_000))
            yield images(1, 3, 32, 32)[0], number % 2

    with pytest.raises(RunError, match=r"No space is left .* need \d+ KB"):
        prepared(
            raw(SampleSplit(stream(), 300), ArraySplit(images(1, 3, 32, 32), TWO[:1])), small_disk
        )
    assert not list((small_disk / "prepared").glob("*.tmp"))
    filler.unlink()
    assert json.loads((prepared(raw(), small_disk).folder / "manifest.json").read_text())
