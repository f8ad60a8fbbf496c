"""Rows of a large array: the same as from the map, and none of them kept."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.core.small_training import make_network, make_split, run_fit, same, weights
from torchyard.core.data import dataset
from torchyard.core.data.dataset import FileRows, PreparedDataset, Split, rows_of
from torchyard.core.errors import RunError
from torchyard.core.evaluation.predict import predict


def mapped(folder, array):
    np.save(folder / "samples.npy", array)
    return np.load(folder / "samples.npy", mmap_mode="c")


@given(st.data(), st.sampled_from([np.uint8, np.float32]))
def test_rows_are_those_of_the_array(tmp_path_factory, data, dtype):
    array = np.random.default_rng(0).integers(0, 255, (23, 3, 5)).astype(dtype)
    rows = FileRows(mapped(tmp_path_factory.mktemp("rows"), array))
    assert (len(rows), rows.shape, rows.dtype) == (23, array.shape, array.dtype)
    first, end = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))
    np.testing.assert_array_equal(rows[first:end], array[first:end], strict=True)
    places = np.array(data.draw(st.lists(st.integers(0, 22))), dtype=np.int64)
    np.testing.assert_array_equal(rows[places], array[places], strict=True)
    chosen = rows.index_select(0, torch.from_numpy(places))
    np.testing.assert_array_equal(chosen.numpy(), array[places], strict=True)


def test_only_a_large_map_is_left_in_its_file(tmp_path, monkeypatch):
    array = np.zeros((10, 4), np.float32)
    map_ = mapped(tmp_path, array)
    assert rows_of(map_) is map_
    monkeypatch.setattr(dataset, "MAPPED_BYTES", array.nbytes - 1)
    assert isinstance(rows_of(map_), FileRows)
    assert rows_of(array) is array


def test_a_file_that_was_cut_short_is_an_error_and_no_fatal_signal(tmp_path):
    array = np.ones((100, 4), np.float32)
    rows = FileRows(mapped(tmp_path, array))
    with (tmp_path / "samples.npy").open("r+b") as file:
        file.truncate(800)
    assert rows[:10].sum() == 40
    with pytest.raises(RunError, match=r"samples\.npy is damaged: it ends too early"):
        rows[np.array([99])]


def test_a_large_split_is_trained_and_evaluated_alike(tmp_path, monkeypatch):
    split, held_out = make_split(), make_split(60, seed=7)
    stored = Split(mapped(tmp_path, split.samples), split.labels)
    chosen = np.array([1, 5, 59, 7])
    trained = {}
    for limit in (dataset.MAPPED_BYTES, 0):
        monkeypatch.setattr(dataset, "MAPPED_BYTES", limit)
        network = make_network()
        run_fit(tmp_path / f"run{limit}", network, train=stored, validation=held_out)
        trained[limit] = (
            *weights(network),
            *(
                torch.from_numpy(predict(network, stored.samples, split.labels, device="cpu",
                                         indices=indices, batch_size=3).logits)
                for indices in (None, chosen)
            ),
        )  # fmt: skip
    assert same(*map(list, trained.values()))
    torch.testing.assert_close(trained[0][-1], trained[0][-2][chosen])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what of a map a process has")
def test_training_maps_no_page_of_a_large_split(tmp_path, monkeypatch):
    samples = np.random.default_rng(0).integers(0, 255, (4000, 3, 32, 32), dtype=np.uint8)
    stored = Split(mapped(tmp_path, samples), np.arange(4000) % 3)
    del samples

    def resident() -> int:
        """KiB of the map that this process has."""
        entries = Path("/proc/self/smaps").read_text().split(str(tmp_path / "samples.npy"))[1:]
        return sum(int(entry.split("Rss:")[1].split()[0]) for entry in entries)

    network = nn.Sequential(*list(make_network())[:-1], nn.Linear(3072, 3))
    monkeypatch.setattr(dataset, "MAPPED_BYTES", 0)
    run_fit(tmp_path / "file", network, train=stored, epochs=1, batch_size=50)
    predict(network, stored.samples, stored.labels, device="cpu")
    assert resident() < 200
    monkeypatch.undo()
    run_fit(tmp_path / "map", network, train=stored, epochs=1, batch_size=50)
    assert resident() > 10_000


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1, 2]", "3", "null", "{}", "\udcff", "[" * 99_999, '{"sizes": 3}'),
        *('{"sizes": {"../x": "many"}}', '{"sizes": {"a": null}, "classes": 3}'),
        '{"sizes": {}, "classes": [], "shape": [], "mean": [], "std": [], "odd": NaN}',
    ],
    ids=lambda text: text[:20],
)
def test_a_manifest_of_anything_is_one_line(tmp_path, text):
    (tmp_path / dataset.MANIFEST).write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(RunError, match="holds no prepared data: ") as caught:
        dataset.PreparedDataset.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_public_names_are_imported_without_numpy():
    code = "import sys, torchyard; sys.exit('numpy' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code]).returncode


def test_of_a_large_array_some_blocks_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 1000)
    content = np.random.default_rng(0).integers(0, 255, 100_000, dtype=np.uint8).tobytes()
    (tmp_path / "samples.npy").write_bytes(content)
    sums = {"samples.npy": dataset.block_sums(tmp_path / "samples.npy")}
    assert len(sums["samples.npy"]) == 100
    stored = PreparedDataset(
        tmp_path, "x", ("a", "b"), (1,), "uint8", (0.0,), (1.0,), {}, "", "", blocks=sums
    )
    assert stored.damaged() == stored.damaged(most=10_000) == []
    half = bytes(50_000) + content[50_000:]
    (tmp_path / "samples.npy").write_bytes(half)
    assert stored.damaged() == ["samples.npy"]
    read = []
    block_sum = dataset.block_sum
    monkeypatch.setattr(
        dataset, "block_sum", lambda file, index: read.append(index) or block_sum(file, index)
    )
    assert stored.damaged(most=10_000) == ["samples.npy"]  # but for one time in a thousand
    first = read[:]
    stored.damaged(most=10_000)
    assert len(first) == 10
    assert sorted(first) != sorted(read[10:])
    unknown = PreparedDataset(tmp_path, "x", ("a", "b"), (1,), "uint8", (0.0,), (1.0,), {}, "", "")
    assert unknown.damaged()


def test_the_samples_of_each_class_are_counted():
    split = Split(np.zeros((3, 2), np.float32), np.array([2, 0, 2]))
    assert split.class_counts(4) == [1, 0, 2, 0]
    assert replace(split, indices=np.array([1, 2])).class_counts(3) == [1, 0, 1]
