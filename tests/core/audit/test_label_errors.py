"""Confident learning: by hand on a few samples, and on digits with some labels changed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.core.audit.pictures import audited
from tests.core.preparation.raw_data import prepared
from torchyard.core.audit.label_errors import confident_errors, judged, label_errors
from torchyard.core.data.raw import ArraySplit, RawData


def test_the_confident_joint_of_a_few_samples_is_the_papers():
    """Thresholds 0.6 and 0.6: of four labelled 0 one counts as 1, of four labelled 1 none as 0."""
    of_zero = [0.9, 0.8, 0.6, 0.1]  # mean 0.6
    of_one = [0.7, 0.7, 0.55, 0.45]  # mean 0.6
    zero = np.array(of_zero + [1 - each for each in of_one])
    probabilities = np.stack([zero, 1 - zero], axis=1)
    labels = np.repeat([0, 1], 4)
    # The last, 0.55 for class 0, is not above that class's threshold, so it is not doubted.
    assert confident_errors(probabilities, labels).tolist() == [3]


def test_a_class_without_samples_and_perfect_predictions_are_no_trouble():
    labels = np.array([0, 2, 2, 0])
    assert confident_errors(np.eye(3)[labels], labels).tolist() == []
    probabilities = np.eye(3)[labels]
    probabilities[3] = 0.2, 0.7, 0.1  # the absent class: nothing says how sure is sure of it
    assert confident_errors(probabilities, labels).tolist() == []


def test_a_classifier_that_is_often_wrong_is_not_believed():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 200)
    doubted = judged(probabilities, np.arange(200) % 4, "dice", 0.9)
    assert not doubted.judged
    assert list(doubted.rows()) == []
    assert doubted.how.startswith("not said: by dice, right on ")


def test_changed_labels_of_vectors_are_found_whatever_their_units(tmp_path, monkeypatch):
    labels = np.arange(60) % 2
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    vectors[:, 0] += 20 * labels
    vectors[:, 1] *= 1000  # says nothing, in a small unit
    given = labels.copy()
    given[[7, 30]] = 1 - given[[7, 30]]
    splits = (vectors[:50], given[:50]), (vectors[50:], given[50:])
    result, _ = audited(*splits, tmp_path)
    doubted = [each for each in result.findings if each.kind == "label error"]
    assert {(each.index, each.label, each.other) for each in doubted} == {
        (7, "cat", "dog"),
        (30, "dog", "cat"),
    }
    monkeypatch.setattr("torchyard.core.audit.label_errors.MOST_PROBABILITIES", 99)
    result, _ = audited(*splits, tmp_path / "again")
    assert result.count("label error") == 0
    assert "50 samples of 2 classes are too many" in str(result.facts)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_changed_labels_of_digits_are_found(seed, tmp_path):
    digits, labels = load_digits(return_X_y=True)
    images = (digits.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    generator = np.random.default_rng(seed)
    changed = generator.choice(1500, 45, replace=False)  # 3 %
    labels[changed] = (labels[changed] + generator.integers(1, 10, 45)) % 10
    splits = ((images[part], labels[part]) for part in (slice(1500), slice(1500, None)))
    result, _ = audited(*splits, tmp_path, tuple("0123456789"))
    doubted = {each.index for each in result.findings if each.kind == "label error"}
    right = len(doubted & set(changed.tolist()))
    assert right / len(doubted) >= 0.8
    assert right / 45 >= 0.6


@pytest.mark.slow
def test_changed_labels_are_found_where_neighbours_are_looked_for_among_some_only(tmp_path):
    """Digits, moved by a pixel and noisy, more than the neighbours that are looked at."""
    digits, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(labels), 26_000)
    images, labels = np.pad(digits.reshape(-1, 8, 8) * 15, ((0, 0), (1, 1), (1, 1))), labels[chosen]
    down, right = generator.integers(0, 3, (2, len(chosen)))
    window = np.arange(8)
    images = images[
        chosen[:, None, None],
        down[:, None, None] + window[:, None],
        right[:, None, None] + window,
    ]
    images = np.clip(images + generator.normal(0, 25, images.shape), 0, 255).astype(np.uint8)
    changed = generator.random(len(labels)) < 0.03
    labels = np.where(changed, (labels + generator.integers(1, 10, len(labels))) % 10, labels)
    train, test = (
        (images[part, None], labels[part]) for part in (slice(25_900), slice(25_900, None))
    )
    data = prepared(
        RawData(tuple("0123456789"), ArraySplit(*train), ArraySplit(*test), "here"), tmp_path
    )
    found = label_errors(data).indices
    assert changed[found].mean() >= 0.8
    assert changed[found].sum() / changed[:25_900].sum() >= 0.6


def test_a_classifier_that_is_wrong_on_some_samples_is_not_asked_about_all(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5000, 1, 8, 8), np.uint8)
    labels = np.arange(5000) % 4
    content = RawData(
        tuple("abcd"), ArraySplit(images, labels), ArraySplit(images[:4], labels[:4]), "here"
    )
    steps = []
    doubted = label_errors(prepared(content, tmp_path), lambda *step: steps.append(step))
    assert (doubted.judged, steps) == (False, [])
    assert doubted.how.startswith("not said: by nearest neighbours, right on 2")
