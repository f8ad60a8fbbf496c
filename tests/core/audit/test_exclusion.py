"""What is left out of training, and the figures of a test that was audited."""

import numpy as np
import pytest

from tests.core.audit.pictures import audited, pictures, shifted
from torchyard.core.audit.audit import audit
from torchyard.core.audit.exclusion import EXCLUDED_FILE, audit_figures, excluded_samples
from torchyard.core.audit.findings import AUDIT_FILE, Audit, Finding
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError, UserError
from torchyard.core.training.batches import training_splits

LABELS = np.arange(40) % 2


def config(**settings):
    return RunConfig(dataset={"name": "given", "exclude": "audit"}, **settings)


@pytest.fixture
def leaky(tmp_path):
    """Ten of forty training images are in the test split, two of them shifted."""
    train, test = pictures(40), pictures(20, seed=1)
    test[:10] = train[20:30]
    test[3], test[4] = shifted(train[23], 1, 0), shifted(train[24], 0, -1)
    return audited((train, LABELS), (test, LABELS[:20]), tmp_path)


def test_training_is_without_what_the_test_split_has_and_so_is_its_validation(leaky):
    _, data = leaky
    kept = [*range(20), *range(30, 40)]
    train, validation = training_splits(data, config())
    assert train.indices.tolist() == kept
    assert validation is None
    train, validation = training_splits(data, config(train={"validation": 0.2}))
    assert sorted([*train.indices, *validation.indices]) == kept
    assert np.bincount(train.labels[validation.indices]).tolist() == [3, 3]


def test_a_run_that_is_resumed_excludes_what_it_did_whatever_an_audit_says_now(leaky, tmp_path):
    result, data = leaky
    folder = tmp_path / "run"
    folder.mkdir()
    before = excluded_samples(data, folder)
    Audit([], {"train": [0], "test": [0]}, result.facts, data.digest).write(
        data.folder / AUDIT_FILE
    )
    assert excluded_samples(data, folder).tolist() == before.tolist() == [*range(20, 30)]
    assert excluded_samples(data).tolist() == [0]
    (folder / EXCLUDED_FILE).write_bytes(b"")
    with pytest.raises(RunError, match="what is left out of training is not known"):
        excluded_samples(data, folder)


def test_without_an_audit_or_without_samples_nothing_is_trained(leaky):
    result, data = leaky
    (data.folder / AUDIT_FILE).unlink()
    with pytest.raises(RunError, match="There is no audit"):
        training_splits(data, config())
    Audit([], {"train": [*range(40)], "test": []}, result.facts, data.digest).write(
        data.folder / AUDIT_FILE
    )
    with pytest.raises(UserError, match=r"dataset.exclude=audit: all training samples"):
        training_splits(data, config())


def test_the_accuracy_is_told_with_and_without_the_leaked_samples(leaky):
    result, data = leaky
    targets = data.test.labels
    logits = np.eye(2, dtype=np.float32)[targets]
    logits[12:] = 1 - logits[12:]  # of the ten that are no copies, eight wrong
    figures = audit_figures(result, Predictions(logits, targets), data.counts, excluded=False)
    assert figures["leaked"] == 0.5
    assert figures["accuracy_without_leaked"] == 0.2
    figures = audit_figures(result, Predictions(logits, targets), data.counts, excluded=True)
    assert figures["leaked"] == 0
    assert "label_errors" not in figures  # labels at random: they were not judged


def test_the_share_of_doubted_labels_is_told_where_labels_were_judged(leaky):
    _, data = leaky
    doubted = [Finding("label error", "train", index) for index in range(3)]
    predictions = Predictions(np.eye(2, dtype=np.float32), np.arange(2))
    found = Audit(doubted, {}, {"labels_judged": True}, data.digest)
    figures = audit_figures(found, predictions, data.counts, excluded=False)
    assert figures["label_errors"] == 3 / 40


def test_an_audit_whose_data_changed_is_not_used(leaky):
    result, data = leaky
    Audit(result.findings, result.leaked, result.facts, "another").write(data.folder / AUDIT_FILE)
    with pytest.raises(RunError, match="There is no audit"):
        excluded_samples(data)
    assert audit(data, lambda *step: None).digest == data.digest
