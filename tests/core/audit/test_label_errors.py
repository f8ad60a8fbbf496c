"""Confident learning: by hand on a few samples, and on digits with some labels changed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.core.audit.pictures import audited
from torchyard.core.audit import label_errors
from torchyard.core.audit.label_errors import confident_errors, judged


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
    monkeypatch.setattr(label_errors, "MOST_BYTES", 50 * 3 * 4 - 1)
    result, _ = audited(*splits, tmp_path / "again")
    assert result.count("label error") == 0
    assert "more than 1 GiB" in str(result.facts)
    monkeypatch.setattr(label_errors, "MOST_SAMPLES", 49)
    result, _ = audited(*splits, tmp_path / "once more")
    assert "50 training samples are more than 49" in str(result.facts)


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
