"""A logged model asked for the classes of images."""

from types import SimpleNamespace

import numpy as np
import pytest

from torchyard.core.errors import RunError
from torchyard.core.tracking.classifier import ImageClassifier


def test_probabilities_are_the_softmax_and_the_best_come_first(monkeypatch):
    import mlflow.pyfunc

    logits = np.log(np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32))
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return logits[sum(sizes) - len(batch) : sum(sizes)]

    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda uri: SimpleNamespace(predict=predict))
    model = ImageClassifier("models:/m", (1, 2, 2), ("a", "b", "c"))
    images = np.zeros((2, 1, 2, 2), np.uint8)
    first, second = model.classify(images, top=2)
    assert [guess.name for guess in first] == ["b", "c"]
    assert [guess.name for guess in second] == ["a", "b"]
    assert [guess.probability for guess in first] == pytest.approx([0.7, 0.2])
    assert sizes == [2]

    monkeypatch.setattr("torchyard.core.tracking.classifier.BATCH_BYTES", 1)
    sizes.clear()
    assert model.classify(images, top=9)[0][2].name == "a"
    assert sizes == [1, 1]

    logits[0, 0] = np.nan
    sizes.clear()
    with pytest.raises(RunError, match="NaN"):
        model.classify(images, top=1)
