"""Predictions in Parquet: what other programs read there, and that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data import dataset
from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.data.predictions import Predictions, PredictionTable
from torchyard.core.errors import RunError

NAMES = ("zebra", "<script>alert(1)</script>", "猫 🐈", "never seen", "")


def table(count: int = 50, classes=NAMES, scale: float = 300) -> PredictionTable:
    rng = np.random.default_rng(0)
    width = len(classes)
    logits = rng.normal(0, scale, (count, width)).astype(np.float32)
    targets = rng.integers(0, max(1, width - 2), count)
    return PredictionTable(
        Predictions(logits, targets), "lenet #1", "toy", tuple(classes), "d" * 64
    )


def test_pandas_reads_names_probabilities_and_what_they_are_of(tmp_path: Path) -> None:
    made = table()
    made.write(tmp_path / "p.parquet")
    read = pd.read_parquet(tmp_path / "p.parquet")
    assert read.index.name == "index"
    assert read.index.tolist() == list(range(50))
    assert list(read.columns) == ["true", "predicted", "probabilities", "logits"]
    names = np.array(NAMES, object)
    assert read["true"].tolist() == names[made.predictions.targets].tolist()
    assert read["predicted"].tolist() == names[made.predictions.predicted].tolist()
    assert read["true"].cat.categories.tolist() == list(NAMES)
    np.testing.assert_array_equal(np.stack(read["probabilities"]), made.predictions.probabilities)
    assert read.attrs == {
        "run": "lenet #1",
        "dataset": "toy",
        "classes": list(NAMES),
        "test_digest": "d" * 64,
        "figures": {},
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "p.parquet"]


def test_the_index_is_a_column_for_programs_that_are_not_pandas(tmp_path: Path) -> None:
    from pyarrow import parquet

    table().write(tmp_path / "p.parquet")
    assert "index" in parquet.read_schema(tmp_path / "p.parquet").names


@given(st.integers(0, 40), st.integers(1, 120), st.sampled_from([0.01, 1, 1e4]))
@settings(max_examples=25, deadline=None)
def test_what_was_written_is_read_bit_for_bit(tmp_path_factory, count, width, scale) -> None:
    made = table(count, [f"c{i}" for i in range(width)], scale)
    path = tmp_path_factory.mktemp("table") / "p.parquet"
    made.write(path)
    read = PredictionTable.read(path)
    np.testing.assert_array_equal(read.predictions.logits, made.predictions.logits)
    np.testing.assert_array_equal(read.predictions.targets, made.predictions.targets)
    assert read.predictions.logits.dtype == np.float32
    assert (read.run, read.dataset, read.classes, read.test_digest) == (
        made.run,
        made.dataset,
        made.classes,
        made.test_digest,
    )


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    missing, other, text = (tmp_path / name for name in ("missing", "other", "text"))
    pd.DataFrame({"a": [1]}).to_parquet(other)
    text.write_text("no parquet")
    cut = tmp_path / "cut"
    table().write(cut)
    cut.write_bytes(cut.read_bytes()[:-300])
    for path in (missing, other, text, cut):
        with pytest.raises(RunError, match=f"{path.name} holds no predictions"):
            PredictionTable.read(path)


def prepared(folder: Path, test_value: int = 0, train_value: int = 0, names=("a", "b")):
    folder.mkdir()
    for part, value in (("train", train_value), ("test", test_value)):
        np.save(folder / f"{part}_samples.npy", np.full((6, 1, 4, 4), value, np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(6) % 2)
    manifest = {
        "name": "toy", "classes": names, "shape": (1, 4, 4), "dtype": "uint8",
        "mean": [0.0], "std": [1.0], "counts": {"train": 6, "test": 6},
        "digest": "0" * 64, "source": "", "sizes": {},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return PreparedDataset.open(folder)


def test_the_digest_is_of_the_test_split_alone(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one").test_digest
    assert prepared(tmp_path / "other training", train_value=9).test_digest == one
    assert prepared(tmp_path / "other pixels", test_value=9).test_digest != one
    assert prepared(tmp_path / "other names", names=("a", "c")).test_digest != one


def test_the_digest_of_a_large_split_is_the_same(tmp_path: Path, monkeypatch) -> None:
    one = prepared(tmp_path / "one").test_digest
    monkeypatch.setattr(dataset, "MAPPED_BYTES", 0)
    assert prepared(tmp_path / "large").test_digest == one


# The arrays that a worker hands over


def predictions(logits, targets) -> Predictions:
    return Predictions(np.asarray(logits, np.float32), np.asarray(targets, np.int64))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="N x K"):
        predictions(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="N x K"):
        predictions(np.zeros(3), np.zeros(3))


def test_softmax_and_confidence_match_torch_and_survive_huge_logits() -> None:
    import torch

    logits = np.random.default_rng(0).normal(0, 300, (50, 7)).astype(np.float32)
    made = predictions(logits, np.zeros(50))
    expected = torch.from_numpy(logits).softmax(dim=1).numpy()
    np.testing.assert_allclose(made.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(made.confidence, expected.max(axis=1), atol=1e-6)
    assert made.probabilities.dtype == np.float32
    assert made.predicted.tolist() == expected.argmax(axis=1).tolist()
    assert made.predicted.dtype == np.int64


def test_predictions_come_back_from_disk(tmp_path) -> None:
    made = predictions(np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 4)
    made.save(tmp_path / "predictions.npz")
    back = Predictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(back.logits, made.logits)
    np.testing.assert_array_equal(back.targets, made.targets)
    assert (back.logits.dtype, back.targets.dtype) == (np.float32, np.int64)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch) -> None:
    path = tmp_path / "predictions.npz"
    predictions([[1, 0]], [0]).save(path)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        predictions([[0, 1]], [1]).save(path)
    assert Predictions.load(path).targets.tolist() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_a_file_cut_short_or_missing_or_of_another_kind_is_refused(tmp_path) -> None:
    path = tmp_path / "predictions.npz"
    predictions(np.ones((100, 10)), np.zeros(100)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", logits=np.array([{}], dtype=object), targets=np.zeros(1))
    (tmp_path / "empty.npz").touch()
    for name in ("predictions.npz", "none.npz", "array.npy", "pickle.npz", "empty.npz"):
        with pytest.raises(RunError, match=name):
            Predictions.load(tmp_path / name)
