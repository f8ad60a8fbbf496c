"""Images decoded in several processes: the same arrays, and no process left."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.core.preparation.raw_data import (
    dataset,
    encoded,
    image_files,
    image_split,
    photo,
    prepared,
    problems,
    raw,
    start,
)
from torchyard.core.errors import RunError
from torchyard.core.preparation import decoding
from torchyard.core.preparation.prepare import prepare_dataset


def decoders(parent: int | None = None) -> list[psutil.Process]:
    """The processes that decode for a process, this one if none is given."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):  # one that is dead already has no command line
            if "popen_loky" in str(child.cmdline()):
                found.append(child)
    return found


def test_processes_and_this_one_decode_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image_files(tmp_path / "images", 700)
    expected = np.stack([np.moveaxis(np.asarray(Image.open(file)), 2, 0) for file in files])
    content = raw(image_split(files[:600]), image_split(files[600:]))
    seen: list[tuple[str, int, int]] = []
    processes: set[psutil.Process] = set()

    def follow(*progress: Any) -> None:
        seen.append(progress)
        processes.update(decoders())

    here = prepare_dataset("given", dataset(lambda _: content)(), tmp_path / "here", follow)
    assert not processes
    monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    there = prepare_dataset("given", dataset(lambda _: content)(), tmp_path / "there", follow)
    assert processes
    assert not psutil.wait_procs(decoders(), timeout=60)[1]
    assert here.digest == there.digest
    np.testing.assert_array_equal(there.train.samples, expected[:600])
    np.testing.assert_array_equal(there.test.samples, expected[600:])
    half = len(seen) // 2
    assert [done for _, done, _ in seen[:half]] == sorted(done for _, done, _ in seen[:half])
    assert seen[-1] == ("decoding given", 700, 700)


def test_what_cannot_go_to_another_process_is_decoded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
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


@pytest.mark.parametrize("in_processes", [False, True])
def test_unreadable_images_are_named_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: bool
) -> None:
    if in_processes:
        monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
    files = image_files(tmp_path / "images", 400)
    files[3].write_bytes(b"")
    files[70].write_bytes(b"not an image")
    files[301].unlink()
    for number in range(100, 110):
        os.truncate(files[number], files[number].stat().st_size // 2)
    found = problems(raw(image_split(files), image_split(files[:3])), tmp_path)
    assert len(found) == 13
    assert found[0] == f"{files[3]}: the file is empty"
    assert found[1] == f"{files[70]}: not an image, or of a format that is not supported"
    assert found[2].startswith(f"{files[100]}: ")
    assert "truncated" in found[2]
    assert found[10] == "… and 3 more of 403 images cannot be used"
    everything = Path(found[11].removeprefix("all of them are named in ")).read_text().splitlines()
    broken = [3, 70, *range(100, 110), 301]
    assert [line.partition(":")[0] for line in everything] == [str(files[n]) for n in broken]
    assert found[12] == "set dataset.broken=skip to leave out images that cannot be read"


def test_images_of_another_size_are_refused_with_advice(tmp_path: Path) -> None:
    files = image_files(tmp_path / "images", 5)
    files[2].write_bytes(encoded(photo(20, 10)))
    split = image_split(files, resize=False, size_advice="set the size")
    found = problems(raw(split, split), tmp_path)
    assert f"{files[2]}: of another size: 20x10, not 12x9" in found
    assert "set the size" in found


def test_images_up_to_the_limit_of_pillow_or_the_users_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    files = image_files(tmp_path / "images", 2)  # 108 pixels: Pillow warns, but takes it
    files[1].write_bytes(encoded(photo(30, 30)))  # it does not take this one
    split = image_split(files, shape=(3, 4, 4))
    found = problems(raw(split, split), tmp_path)
    refused = f"{files[1]}: too large: 30x30; dataset.max_pixels sets the limit"
    assert found[:2] == [refused, refused]
    assert prepared(raw(split, split), tmp_path / "2", max_pixels=900).shape == (3, 4, 4)
    found = problems(raw(split, split), tmp_path, max_pixels=899)
    assert found[0] == f"{files[1]}: too large: 30x30; dataset.max_pixels sets the limit"
    assert Image.MAX_IMAGE_PIXELS == 100


def noisy_read(file: Path) -> bytes:
    about = "\n".join([os.environ.get("OMP_NUM_THREADS", ""), *sys.modules])
    file.with_name(f"read in {os.getpid()}").write_text(about)
    print("noise", file=sys.stderr)
    print("noise", flush=True)
    return file.read_bytes()


def test_a_decoding_process_prints_what_it_likes_and_imports_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    files = image_files(tmp_path / "images", 400)
    quietly = prepared(raw(image_split(files), image_split(files)), tmp_path / "a")
    split = image_split(files, read=noisy_read)
    assert prepared(raw(split, split), tmp_path / "b").digest == quietly.digest
    readers = {path.name: path.read_text() for path in (tmp_path / "images").glob("read in *")}
    del readers[f"read in {os.getpid()}"]
    assert readers
    for about in readers.values():
        threads, *modules = about.splitlines()
        assert threads == "1"
        assert not {"torch", "prefect", "mlflow"} & {*modules}


def test_on_one_core_no_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    content = raw(*[image_split(image_files(tmp_path / "images", 400))] * 2)

    def check(*_: Any) -> None:
        assert not decoders()

    prepare_dataset("given", dataset(lambda _: content)(), tmp_path, check)


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_decoding_processes_end_with_their_parent(tmp_path: Path, ended_by: signal.Signals) -> None:
    image_files(tmp_path / "images", 1)
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the working folder')")
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        from torchyard import DatasetParams, EncodedSplit, RawData
        from torchyard.core.preparation import decoding
        from torchyard.core.preparation.prepare import prepare_dataset

        decoding.MIN_PARALLEL_SECONDS = 0
        image = Path(sys.argv[1]) / "images/0000.png"

        class Many(DatasetParams):
            def build(self, downloads):
                part = EncodedSplit(
                    Path.read_bytes, [image] * 500_000, ["image"] * 500_000,
                    np.zeros(500_000, int), (3, 12, 9),
                )
                return RawData(["a", "b"], part, part)

        def report(description, done, total):
            if done > 1000:
                print("decoding", flush=True)

        prepare_dataset("many", Many(), Path(sys.argv[1]) / "cache", report)
    """
    process = start(script, tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "decoding\n"
    children = decoders(process.pid)
    assert children
    if ended_by == signal.SIGINT:
        os.killpg(process.pid, ended_by)  # as Ctrl-C in a terminal does
        _, errors = process.communicate(timeout=150)
        assert errors.count("Traceback") == 1
        assert "\nKeyboardInterrupt\n" in errors
        assert not list((tmp_path / "cache/prepared").glob("*.tmp"))
    else:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_decoding_process_that_dies_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_PARALLEL_SECONDS", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    file = image_files(tmp_path / "images", 1)[0]
    content = raw(image_split([file] * 20_000), image_split([file]))

    def kill_one(*_: Any) -> None:
        for process in decoders():
            with suppress(psutil.Error):
                process.kill()

    with pytest.raises(RunError, match="decoding process ended with status -9"):
        prepare_dataset("given", dataset(lambda _: content)(), tmp_path, kill_one)
    assert not list((tmp_path / "prepared").glob("*.tmp"))
