"""Preparation: what comes out, what is found again, and what a bad end leaves behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import ArraySplit, EncodedSplit, RawData, SampleSplit, stratified_split
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.params import DatasetParams
from torchyard.core.preparation import decoding
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset

RNG = np.random.default_rng(7)


def quiet(description: str, done: int, total: int) -> None:
    pass


def dataset(build: Callable[[Path], Any], fingerprint: str = "") -> Any:
    """A data set as a plugin would give it, counting its builds."""

    class Given(DatasetParams):
        tag: int = 0
        builds: ClassVar[list[Path]] = []

        def build(self, downloads: Path) -> RawData:
            self.builds.append(downloads)
            return build(downloads)

        def fingerprint(self) -> str:
            return fingerprint

    return Given


def images(count: int, *shape: int) -> Any:
    return RNG.integers(0, 256, (count, *(shape or (3, 4, 5))), dtype=np.uint8)


def raw(train: Any = None, test: Any = None, classes: tuple[str, ...] = ("cat", "dog")) -> RawData:
    return RawData(
        classes,
        train or ArraySplit(images(6), np.array([0, 1, 0, 1, 0, 1])),
        test or ArraySplit(images(2), np.array([0, 1])),
        "here",
    )


def prepared(content: RawData, cache: Path) -> PreparedDataset:
    return prepare_dataset("given", dataset(lambda _: content)(), cache, quiet)


def problems(content: RawData, cache: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        prepared(content, cache)
    assert all(problem.startswith("dataset given: ") for problem in caught.value.problems)
    assert not list((cache / "prepared").glob("*/manifest.json"))
    assert not list((cache / "prepared").glob("*.tmp"))
    return [problem.removeprefix("dataset given: ") for problem in caught.value.problems]


# ---- what comes out ----


@settings(max_examples=25, deadline=None)
@for_all(st.data())
def test_arrays_come_back_as_they_were(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    if data.draw(st.booleans()):
        sample = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
        values = arrays.arrays(np.uint8, st.just(sample))
        dtype, axes, scale = np.uint8, (0, 2, 3), 255.0
    else:
        sample = (data.draw(st.integers(1, 6)),)
        values = arrays.arrays(np.float32, st.just(sample), elements=st.floats(-9, 9, width=32))
        dtype, axes, scale = np.float32, (0,), 1.0
    splits = []
    for _ in range(2):
        rows = data.draw(st.lists(st.tuples(values, st.integers(0, classes - 1)), min_size=1))
        samples = np.stack([row for row, _ in rows]).astype(dtype)
        splits.append(ArraySplit(samples, np.array([label for _, label in rows])))
    with tempfile.TemporaryDirectory() as folder:
        content = raw(*splits, tuple(map(str, range(classes))))
        found = prepared(content, Path(folder))
        for split, part in zip(splits, (found.train, found.test), strict=True):
            assert part.samples.dtype == dtype
            np.testing.assert_array_equal(part.samples, split.samples)
            np.testing.assert_array_equal(part.labels, split.labels)
            assert part.labels.dtype == np.int64
        wide = splits[0].samples.astype(np.float64) / scale
        np.testing.assert_allclose(found.mean, wide.mean(axes), atol=1e-6)
        np.testing.assert_allclose(found.std, wide.std(axes), atol=1e-6)
        assert found.shape == sample
        assert found.counts == {"train": len(splits[0].labels), "test": len(splits[1].labels)}


@settings(max_examples=100, deadline=None)
@for_all(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_stratified_split_keeps_every_class_on_both_sides(
    labels: list[int], fraction: float, seed: int
) -> None:
    array = np.array(labels)
    rest, part = stratified_split(array, fraction, seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label in set(labels):
        members = labels.count(label)
        share = int((array[part] == label).sum())
        if members > 1:
            assert 1 <= share <= members - 1
            assert abs(share - members * fraction) <= 1
    again = stratified_split(array, fraction, seed)
    assert (rest.tolist(), part.tolist()) == (again[0].tolist(), again[1].tolist())


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


def test_statistics_of_many_chunks_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchyard.core.preparation.arrays.CHUNK_BYTES", 1000)
    samples = images(200, 3, 4, 5)
    found = prepared(raw(ArraySplit(samples, np.zeros(200, int)), None), tmp_path)
    scaled = samples / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std((0, 2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(found.train.samples, samples)


def test_a_constant_component_has_no_deviation(tmp_path: Path) -> None:
    vectors = np.full((50, 2), 0.1, dtype=np.float32)
    split = ArraySplit(vectors, np.zeros(50, int))
    assert prepared(raw(split, split), tmp_path).std == pytest.approx((0, 0), abs=1e-12)
    grey = ArraySplit(np.full((9, 1, 7, 7), 77, np.uint8), np.zeros(9, int))
    assert prepared(raw(grey, grey), tmp_path / "b").std == (0,)


# ---- what is found again ----


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


# ---- what is wrong with the data ----


def vectors(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, dtype=np.float32)


TWO = np.array([0, 1])
BAD: dict[str, tuple[Callable[[], RawData], str]] = {
    "empty train": (
        lambda: raw(ArraySplit(np.empty((0, 3, 4, 5), np.uint8), np.empty(0, int))),
        "the train split is empty",
    ),
    "empty test stream": (lambda: raw(None, SampleSplit([], 0)), "the test split is empty"),
    "empty test": (lambda: raw(None, SampleSplit([], 3)), "the test split is empty"),
    "dtype": (
        lambda: raw(ArraySplit(images(2).astype(np.int16), TWO)),
        "one train sample is int16 (3, 4, 5); it must be a uint8 image (C, H, W) or a float32",
    ),
    "no channel": (lambda: raw(ArraySplit(images(2, 4, 5), TWO)), "uint8 (4, 5); it must be"),
    "shapes": (
        lambda: raw(None, ArraySplit(images(2, 1, 4, 5), TWO)),
        "the splits differ: train is uint8 (3, 4, 5), test is uint8 (1, 4, 5)",
    ),
    "labels": (
        lambda: raw(ArraySplit(images(4), np.array([0, 7, -1, 7]))),
        "train labels are out of range: -1 (1 of them), 7 (2 of them); "
        "there are 2 classes, so labels go from 0 to 1",
    ),
    "stream labels": (
        lambda: raw(SampleSplit([(images(1)[0], 0), (images(1)[0], 2)], 2)),
        "train labels are out of range: 2 (1 of them)",
    ),
    "label type": (
        lambda: raw(ArraySplit(images(2), np.array([0.0, 1.0]))),  # type: ignore[arg-type]
        "the train labels must be integers, one for each sample; they are float64 (2,)",
    ),
    "label count": (
        lambda: raw(ArraySplit(images(3), TWO)),
        "the train split has 3 samples and 2 labels",
    ),
    "not finite": (
        lambda: raw(
            ArraySplit(vectors((1, 2), (np.nan, 3), (4, np.inf)), np.array([0, 1, 0])),
            ArraySplit(vectors((1, 2)), np.array([0])),
        ),
        "2 train samples hold values that are not finite (the first is sample 1)",
    ),
    "no classes": (lambda: raw(classes=()), "there are no classes"),
    "same class": (lambda: raw(classes=("cat", "cat")), "2 classes are named 'cat'"),
    "stream shapes": (
        lambda: raw(SampleSplit([(images(1)[0], 0), (images(1, 3, 9, 9)[0], 1)], 2)),
        "1 train samples are uint8 (3, 9, 9), unlike the first",
    ),
    "stream short": (
        lambda: raw(SampleSplit([(images(1)[0], 0)], 2)),
        "the train split promised 2 samples and gave only 1",
    ),
    "stream long": (
        lambda: raw(SampleSplit([(images(1)[0], 0)] * 3, 2)),
        "the train split promised 2 samples and gave more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(tmp_path: Path, case: str) -> None:
    build, message = BAD[case]
    found = problems(build(), tmp_path)
    assert len(found) == 1
    assert message in found[0]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    content = raw(
        ArraySplit(images(2), np.array([5, 0])),
        ArraySplit(images(0), np.empty(0, int)),
        ("cat", "cat"),
    )
    assert len(problems(content, tmp_path)) == 3


def test_a_stream_of_lists_is_vectors(tmp_path: Path) -> None:
    stream = SampleSplit([([1, 2.5], 0), ((3, 4), 1)], 2)
    found = prepared(raw(stream, ArraySplit(vectors((0, 0)), np.array([1]))), tmp_path)
    np.testing.assert_array_equal(found.train.samples, vectors((1, 2.5), (3, 4)))


def test_a_plugin_bug_is_a_failed_run_with_its_traceback(tmp_path: Path) -> None:
    def build(_: Path) -> RawData:
        return {}["missing"]

    with pytest.raises(RunError, match="data set 'given' failed: KeyError: 'missing'") as caught:
        prepare_dataset("given", dataset(build)(), tmp_path, quiet)
    assert 'return {}["missing"]' in caught.value.details
    with pytest.raises(RunError, match="gave a list, not a RawData"):
        prepare_dataset("given", dataset(lambda _: [])(), tmp_path, quiet)


# ---- images ----


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 12, width: int = 9) -> Image.Image:
    return Image.fromarray(np.moveaxis(images(1, 3, height, width)[0], 0, 2))


def image_files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = []
    for number in range(count):
        file = folder / f"{number:04}.png"
        file.write_bytes(encoded(photo()))
        files.append(file)
    return files


def image_split(files: list[Path], shape: tuple[int, int, int] = (3, 12, 9), **options: Any) -> Any:
    options = {"read": Path.read_bytes, "resize": True, **options}
    labels = np.arange(len(files)) % 2
    return EncodedSplit(
        references=files, names=[str(f) for f in files], labels=labels, shape=shape, **options
    )


def test_processes_and_this_one_decode_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image_files(tmp_path / "images", 700)
    expected = np.stack([np.moveaxis(np.asarray(Image.open(file)), 2, 0) for file in files])
    content = raw(image_split(files[:600]), image_split(files[600:]))
    seen: list[tuple[str, int, int]] = []
    helpers: set[str] = set()

    def watch(*progress: Any) -> None:
        seen.append(progress)
        for child in psutil.Process().children():
            helpers.update(part for part in child.cmdline() if "popen_loky" in part)

    here = prepare_dataset("given", dataset(lambda _: content)(), tmp_path / "here", watch)
    assert not helpers
    monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    there = prepare_dataset("given", dataset(lambda _: content)(), tmp_path / "there", watch)
    assert helpers
    assert not [c for c in psutil.Process().children() if "popen_loky" in str(c.cmdline())]
    assert here.digest == there.digest
    np.testing.assert_array_equal(there.train.samples, expected[:600])
    np.testing.assert_array_equal(there.test.samples, expected[600:])
    half = len(seen) // 2
    assert [done for _, done, _ in seen[:half]] == sorted(done for _, done, _ in seen[:half])
    assert seen[-1] == ("decoding given", 700, 700)


def test_what_cannot_go_to_another_process_is_decoded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0.0)
    files = image_files(tmp_path / "images", 80)
    unsendable = image_split(files, read=lambda file: file.read_bytes())
    # A class of a module that the other process does not find, as of a loose plugin file.
    namespace: dict[str, Any] = {"__name__": "loose_plugin"}
    exec(
        "class Reader:\n    def __call__(self, file):\n        return file.read_bytes()", namespace
    )
    module = type(sys)("loose_plugin")
    module.__dict__.update(namespace)
    monkeypatch.setitem(sys.modules, "loose_plugin", module)
    unknown = image_split(files, read=namespace["Reader"]())
    one = prepared(raw(unsendable, unsendable), tmp_path / "a")
    two = prepared(raw(unknown, unknown), tmp_path / "b")
    assert one.digest == two.digest


@pytest.mark.parametrize("apart", [False, True])
def test_unreadable_images_are_named_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    if apart:
        monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0.0)
    files = image_files(tmp_path / "images", 400)
    files[3].write_bytes(b"")
    files[70].write_bytes(b"not an image")
    files[301].unlink()
    for number in range(100, 110):
        os.truncate(files[number], files[number].stat().st_size // 2)
    found = problems(raw(image_split(files), image_split(files[:3])), tmp_path)
    assert len(found) == 11
    assert found[0] == f"{files[3]}: the file is empty"
    assert found[1] == f"{files[70]}: not an image, or of a format that is not supported"
    assert found[2].startswith(f"{files[100]}: ")
    assert "truncated" in found[2]
    assert found[10] == "… and 3 more of the 400 train images cannot be used"


def test_images_of_another_size_are_refused_with_advice(tmp_path: Path) -> None:
    files = image_files(tmp_path / "images", 5)
    files[2].write_bytes(encoded(photo(20, 10)))
    split = image_split(files, resize=False, size_advice="set the size")
    found = problems(raw(split, split), tmp_path)
    assert f"{files[2]}: of another size: 20x10, not 12x9" in found
    assert "set the size" in found


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    files = image_files(tmp_path / "images", 2)  # 108 pixels: a warning of Pillow's
    files[1].write_bytes(encoded(photo(30, 30)))  # its error
    found = problems(raw(image_split(files), image_split(files)), tmp_path)
    assert len(found) == 4
    assert all("too large" in problem for problem in found)


# ---- bad ends ----

SLOW = """
    import sys, time
    from pathlib import Path
    from typing import Any
    import numpy as np
    from torchyard import DatasetParams, EncodedSplit, RawData, SampleSplit
    from torchyard.core.preparation import decoding
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


def start(script: str, *arguments: Any) -> subprocess.Popen[str]:
    text = textwrap.dedent(SLOW) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
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
    process = start(script, tmp_path, 60)
    wait_for((tmp_path / "half").exists)
    process.kill()
    process.wait()
    (leftover,) = (tmp_path / "prepared").glob("*.tmp")
    assert not list((tmp_path / "prepared").glob("*/manifest.json"))
    prepared(raw(), tmp_path)  # another data set in the same cache clears up
    assert not leftover.exists()
    again = start(script, tmp_path, 60.0)
    (tmp_path / "half").unlink()
    wait_for((tmp_path / "half").exists)
    prepared(raw(ArraySplit(images(2), TWO)), tmp_path)
    assert list((tmp_path / "prepared").glob("*.tmp")), "the work of a living process was removed"
    again.kill()
    again.wait()
    finished, _ = start(script, tmp_path, 0).communicate(timeout=60)
    assert len(finished.strip()) == 64


def test_two_processes_prepare_the_same_at_once(tmp_path: Path) -> None:
    script = """
        folder = Path(sys.argv[1])
        found = prepare_dataset("slow", Slow(folder=folder, seconds=1), folder, lambda *_: None)
        print(found.digest, len(found.train))
    """
    both = [start(script, tmp_path), start(script, tmp_path)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert (tmp_path / "builds").read_text().count("built") == 1


def test_decoding_processes_end_with_their_parent(tmp_path: Path) -> None:
    image_files(tmp_path / "images", 1)
    script = """
        decoding.WORTH_PROCESSES = 0
        image = Path(sys.argv[1]) / "images/0000.png"

        class Many(DatasetParams):
            def build(self, downloads):
                part = EncodedSplit(
                    Path.read_bytes, [image] * 500_000, ["image"] * 500_000,
                    np.zeros(500_000, int), (3, 12, 9),
                )
                return RawData(["a", "b"], part, part)

        def tell(description, done, total):
            if done > 1000:
                print("decoding", flush=True)

        prepare_dataset("many", Many(), Path(sys.argv[1]) / "cache", tell)
    """
    process = start(script, tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "decoding\n"
    children = psutil.Process(process.pid).children()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_decoding_process_that_dies_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    file = image_files(tmp_path / "images", 1)[0]
    content = raw(image_split([file] * 20_000), image_split([file]))

    def kill_one(*_: Any) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # one that is dead already has no command line
                if "popen_loky" in str(child.cmdline()):
                    child.kill()

    with pytest.raises(RunError, match="decoding process ended with status -9"):
        prepare_dataset("given", dataset(lambda _: content)(), tmp_path, kill_one)
    assert not list((tmp_path / "prepared").glob("*.tmp"))


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
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True
    )
    if not done or done.returncode:
        pytest.skip("mounting a small file system takes privileges this user has not")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_is_told_before_anything_is_written(small_disk: Path) -> None:
    many, few = images(1000, 3, 32, 32), images(2, 3, 32, 32)
    content = raw(ArraySplit(many, np.zeros(1000, int)), ArraySplit(few, TWO))
    begun: list[Any] = []
    with pytest.raises(RunError) as caught:
        prepare_dataset(
            "given", dataset(lambda _: content)(), small_disk, lambda *told: begun.append(told)
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
