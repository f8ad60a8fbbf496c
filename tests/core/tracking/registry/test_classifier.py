"""A logged model asked for the classes of images."""

from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.models import Model
from PIL import Image

from torchyard.core.data.images.reading import ImageReading
from torchyard.core.errors import RunError
from torchyard.core.tracking.mlflow_format import write_model
from torchyard.core.tracking.registry import classifier
from torchyard.core.tracking.registry.classifier import ImageClassifier


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

    monkeypatch.setattr("torchyard.core.tracking.registry.classifier.BATCH_BYTES", 1)
    sizes.clear()
    assert model.classify(images, top=9)[0][2].name == "a"
    assert sizes == [1, 1]

    logits[0, 0] = np.nan
    sizes.clear()
    with pytest.raises(RunError, match="NaN"):
        model.classify(images, top=1)


def test_images_are_read_as_those_that_the_model_was_trained_on(tmp_path, monkeypatch):
    reading = ImageReading(background=(255, 0, 0), value_range=(1000, 1255))
    (tmp_path / "exported").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    arguments = {"torch_version": "2.15", "run_id": "r", "model_id": "m", "location": "l"}
    about = {"dtype": "uint8", "shape": (3, 2, 2), "classes": ("a", "b")}
    about["image_reading"] = reading.model_dump(mode="json", exclude_defaults=True)
    write_model(folder, tmp_path / "exported", **about, **arguments)
    monkeypatch.setattr(classifier, "open_existing", lambda uri: None)
    monkeypatch.setattr(
        classifier, "found_model", lambda client, wanted: (str(folder), "m/1", None)
    )
    written = Model.load(folder)
    info = SimpleNamespace(
        metadata=written.metadata, flavors=written.flavors, signature=written.signature
    )
    monkeypatch.setattr("mlflow.models.get_model_info", lambda address: info)
    model = ImageClassifier.find("m")
    assert model.reading == reading
    Image.new("LA", (2, 2)).save(tmp_path / "clear.png")
    assert model.read(tmp_path / "clear.png")[:, 0, 0].tolist() == [255, 0, 0]
    Image.fromarray(np.full((2, 2), 1100, np.uint16)).save(tmp_path / "deep.png")
    assert model.read(tmp_path / "deep.png")[:, 0, 0].tolist() == [100] * 3
