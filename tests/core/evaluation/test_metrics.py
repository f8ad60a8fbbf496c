"""Predictions and what they add up to."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.evaluation.predict import predict
from torchyard.core.report.markdown import per_class_markdown

HOSTILE = [
    'say "hi"',
    "a,b",
    "a|b",
    "<b>bold</b>",
    "AT&T &amp;",
    "猫 和 狗",
    "*x* _y_ `z` [l](u) $m_1$ #1 ~~s~~ \\|",
    "carriage\rreturn",
    "",
]


def predictions(logits, targets) -> Predictions:
    return Predictions(np.asarray(logits, np.float32), np.asarray(targets, np.int64))


def guesses(predicted, targets, width: int) -> Predictions:
    """Predictions of these classes, all equally sure."""
    return predictions(5 * np.eye(width)[predicted], targets)


def table(evaluation) -> dict[str, dict]:
    return {row["class"]: row for row in evaluation.per_class.to_dict("records")}


# What the predictions say


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


def test_cross_entropy_matches_torch_even_for_certain_mistakes() -> None:
    import torch

    rng = np.random.default_rng(1)
    logits = rng.normal(0, 200, (40, 5)).astype(np.float32)
    targets = rng.integers(0, 5, 40)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets)
    )
    found = evaluate(predictions(logits, targets), list("abcde")).cross_entropy
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="N x K"):
        predictions(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="N x K"):
        predictions(np.zeros(3), np.zeros(3))


# The table


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_table_agrees_with_scikit_learn(data: st.DataObject) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    width = data.draw(st.integers(1, 12))
    pair = st.tuples(st.integers(0, width - 1), st.integers(0, width - 1))
    true, guessed = map(list, zip(*data.draw(st.lists(pair, min_size=1, max_size=60)), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(guesses(guessed, true, width), [str(i) for i in range(width)])
    labels = list(range(width))
    precision, recall, f1, images = precision_recall_fscore_support(
        true, guessed, labels=labels, zero_division=np.nan
    )
    pairs = Counter(zip(true, guessed, strict=True))
    assert found.confusion.tolist() == [[pairs[i, j] for j in labels] for i in labels]
    np.testing.assert_allclose(found.per_class["precision"], precision)
    np.testing.assert_allclose(found.per_class["accuracy"], recall)
    np.testing.assert_allclose(found.per_class["f1"], f1)
    assert found.per_class["images"].tolist() == images.tolist()
    assert found.per_class["correct"].sum() == round(found.accuracy * len(true))
    assert found.confusion.dtype == np.int64


def test_a_class_without_images_divides_nothing_by_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(guesses([0, 0, 1, 2], [0, 0, 1, 1], 4), ["a", "b", "guessed", "unheard"])
    rows = table(found)
    assert rows["guessed"]["images"] == 0
    assert math.isnan(rows["guessed"]["accuracy"])
    assert rows["guessed"]["precision"] == 0
    assert math.isnan(rows["unheard"]["precision"])
    assert math.isnan(rows["unheard"]["f1"])
    assert rows["b"] == pytest.approx(
        {"class": "b", "images": 2, "correct": 1, "accuracy": 0.5, "precision": 1, "f1": 2 / 3}
    )
    assert found.accuracy == 0.75
    assert found.images == 4


def test_a_class_never_predicted_has_no_precision_but_an_f1_of_zero() -> None:
    row = table(evaluate(guesses([0, 0], [0, 1], 2), ["a", "b"]))["b"]
    assert row["accuracy"] == 0
    assert math.isnan(row["precision"])
    assert row["f1"] == 0


def test_a_thousand_classes_and_none_at_all() -> None:
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 1000, 3000)
    found = evaluate(guesses(targets, targets, 1000), [f"c{i}" for i in range(1000)])
    assert found.accuracy == 1
    assert found.confusion.shape == (1000, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = evaluate(predictions(np.zeros((0, 2)), []), ["a", "b"])
    assert math.isnan(empty.accuracy)
    assert math.isnan(empty.cross_entropy)


@pytest.mark.parametrize("target", [-1, 2])
def test_a_label_out_of_range_is_named(target: int) -> None:
    with pytest.raises(RunError, match=str(target)):
        evaluate(predictions(np.zeros((2, 2)), [0, target]), ["a", "b"])


def test_more_outputs_than_classes_is_an_error() -> None:
    with pytest.raises(RunError, match="3 outputs for 2 classes"):
        evaluate(predictions(np.zeros((2, 3)), [0, 1]), ["a", "b"])


def test_most_confused_counts_mistakes_only() -> None:
    found = evaluate(guesses([1, 1, 1, 2, 0, 2, 2], [0, 0, 2, 1, 0, 2, 2], 3), list("abc"))
    assert found.most_confused() == [(0, 1, 2), (1, 2, 1), (2, 1, 1)]
    assert found.most_confused(1) == [(0, 1, 2)]


# Names that bite


@pytest.fixture
def hostile():
    width = len(HOSTILE)
    return evaluate(guesses([0, 1, 1], [0, 0, 0], width), HOSTILE)


def test_csv_reads_back_in_full_precision(hostile) -> None:
    rows = list(csv.DictReader(io.StringIO(hostile.per_class_csv(), newline="")))
    assert [row["class"] for row in rows] == HOSTILE
    assert float(rows[0]["accuracy"]) == 1 / 3
    assert rows[2]["accuracy"] == ""


def test_json_reads_back_with_null_for_nan(hostile) -> None:
    rows = json.loads(hostile.per_class_json(), parse_constant=pytest.fail)
    assert [row["class"] for row in rows] == HOSTILE
    assert rows[0]["accuracy"] == 1 / 3
    assert rows[0]["images"] == 3
    assert rows[2]["accuracy"] is None


def test_markdown_renders_every_name_as_it_is(hostile) -> None:
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(per_class_markdown(hostile))
    )
    cells = [token for token in tokens if token.type == "inline"]
    header, body = cells[:6], cells[6:]
    assert [cell.content for cell in header[:2]] == ["class", "images"]
    assert len(body) == 6 * len(HOSTILE)
    shown = body[::6]
    assert ["".join(c.content for c in cell.children) for cell in shown] == [
        " ".join(name.split()) for name in HOSTILE
    ]
    assert {c.type for cell in shown for c in cell.children} <= {"text", "text_special"}
    assert body[3].content == "33.3 %"
    assert body[2 * 6 + 3].content == "–"


def test_markdown_weakest_first_puts_unknown_classes_last() -> None:
    found = evaluate(guesses([0, 1, 0], [0, 1, 1], 3), ["good", "weak", "unknown"])
    names = [
        line.split("|")[1].strip() for line in per_class_markdown(found, True).splitlines()[2:]
    ]
    assert names == ["weak", "good", "unknown"]


# On disk


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


# Running the network


@pytest.fixture
def network():
    from torch import nn

    class Raw(nn.Module):
        def forward(self, x):
            return x.float() / 255

    body = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)]
    return nn.Sequential(Raw(), *body)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (21, 3, 2, 2), dtype=np.uint8)


def test_predict_gives_the_same_in_any_batches_and_from_any_kind_of_samples(
    network, images, tmp_path
) -> None:
    import torch

    labels = np.arange(21) % 3
    np.save(tmp_path / "samples.npy", images)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    for samples in (
        images,
        torch.from_numpy(images),
        np.load(tmp_path / "samples.npy", mmap_mode="r"),
        np.load(tmp_path / "samples.npy", mmap_mode="c"),
    ):
        for batch_size in (None, 1, 4, 21, 100):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                made = predict(network, samples, labels, device="cpu", batch_size=batch_size)
            np.testing.assert_allclose(made.logits, expected, atol=1e-6)
            assert made.targets.tolist() == labels.tolist()
            assert made.logits.dtype == np.float32


def test_predict_puts_every_mode_back_even_after_an_error(network, images) -> None:
    network.train()
    network[3].eval()  # a frozen batch normalization
    modes = [module.training for module in network.modules()]
    statistics = network[3].running_mean.clone()
    predict(network, images, np.zeros(21), device="cpu")
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(RuntimeError):
        predict(network, images[:, :1], np.zeros(21), device="cpu")
    assert [module.training for module in network.modules()] == modes
    assert (network[3].running_mean == statistics).all()


def test_predict_computes_in_float32_whatever_surrounds_it(network, images) -> None:
    import torch

    plain = predict(network, images, np.zeros(21), device="cpu").logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict(network, images, np.zeros(21), device="cpu").logits
    np.testing.assert_array_equal(plain, inside)


def test_large_samples_come_in_small_batches() -> None:
    from torch import nn

    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.float().flatten(1)[:, :2]

    predict(Watch(), np.zeros((40, 3, 200, 200), np.uint8), np.zeros(40), device="cpu")
    assert sum(seen) == 40
    assert max(seen) * 3 * 200 * 200 * 4 <= 4 * 2**20
    seen.clear()
    predict(Watch(), np.zeros((40, 8), np.float32), np.zeros(40), device="cpu")
    assert seen == [40]
    seen.clear()
    predict(Watch(), np.zeros((2, 3, 1000, 1000), np.uint8), np.zeros(2), device="cpu")
    assert seen == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_stops_the_run(network, images, value) -> None:
    import torch

    with torch.no_grad():
        network[-1].bias[0] = value
    with pytest.raises(RunError, match="NaN or infinite for 21 of 21"):
        predict(network, images, np.zeros(21), device="cpu")


def test_no_samples_and_outputs_of_a_wrong_shape_are_errors(network, images) -> None:
    from torch import nn

    with pytest.raises(RunError, match="no sample"):
        predict(network, images[:0], np.zeros(0), device="cpu")
    with pytest.raises(RunError, match="not N x K"):
        predict(nn.Identity(), images, np.zeros(21), device="cpu")
