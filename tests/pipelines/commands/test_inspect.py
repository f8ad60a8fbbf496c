"""The commands that show data sets, models and what a model predicts of images."""

import json
import os
import pickle
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.pipelines.command_line import refused
from torchyard.core.errors import RunError, UserError

PLUGIN = '''
"""A data set of vectors, and one whose shape is known once it is read."""
from torchyard import ArraySplit, DatasetParams, RawData, hookimpl


class Vectors(DatasetParams):
    """Vectors of three classes, component i around i."""

    width: int = 12

    def build(self, downloads):
        import numpy as np

        labels = np.arange(120) % 3
        rng = np.random.default_rng(0)
        samples = np.arange(self.width) + 0.1 * rng.normal(size=(120, self.width))
        samples = (samples + labels[:, None]).astype(np.float32)
        samples[0, 0] = -7
        split = ArraySplit(samples[:90], labels[:90])
        return RawData(["low", "middle", "high"], split, ArraySplit(samples[90:], labels[90:]))


@hookimpl
def register_datasets(register):
    register("some_vectors", Vectors)
'''


@pytest.fixture(scope="module", autouse=True)
def plugins(workspace):
    with workspace.plugin_file("inspected", PLUGIN):
        yield


@pytest.fixture
def torchyard(workspace, monkeypatch):
    """Run a command in this process; its error is raised."""
    import mlflow

    from torchyard.pipelines.cli import app

    # The command makes the store MLflow's own; no other test shall find it so.
    service = mlflow.tracking._tracking_service.utils
    monkeypatch.setattr(service, "_tracking_uri", service._tracking_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.folder}/mlruns/mlflow.db")
    monkeypatch.setenv("COLUMNS", "160")

    def invoke(*words):
        done = CliRunner().invoke(app, words)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return invoke


def train(**settings):
    from torchyard.core.config.schema import RunConfig
    from torchyard.pipelines.flow.pipeline import train_pipeline

    optimizer = {"name": "adam", "lr": 0.01}
    return train_pipeline(RunConfig(model={"name": "linear"}, optimizer=optimizer, **settings))


@pytest.fixture(scope="module")
def run(workspace):
    """The id of a run on the digits."""
    return train(dataset={"name": "digits", "image_size": 16}, train={"epochs": 2}).run_id


@pytest.fixture(scope="module")
def digits(workspace, run, tmp_path_factory):
    """Two test images as files, and the probabilities that the run's evaluation found."""
    from torchyard.core.data.dataset import PreparedDataset
    from torchyard.core.data.predictions import PredictionTable

    file = workspace.folder / "mlruns" / "runs" / run / "predictions.parquet"
    predictions = PredictionTable.read(file).predictions
    found = [
        PreparedDataset.open(file.parent)
        for file in (workspace.folder / "cache" / "prepared").glob("*/manifest.json")
        if json.loads(file.read_text())["shape"] == [1, 16, 16]
    ]
    folder, files = tmp_path_factory.mktemp("digits"), []
    for place in (3, 40):
        files.append(folder / f"{place}.png")
        Image.fromarray(np.array(found[0].test.samples[place, 0])).save(files[-1])
    return files, predictions.probabilities[[3, 40]]


def rows(printed):
    """The lines of a table: its words by the first of them."""
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()}


# ---- inspect


def test_a_data_set_of_images_is_shown_and_drawn(torchyard, tmp_path):
    picture = tmp_path / "digits.png"
    printed = torchyard("inspect", "digits", "image_size=16", "--picture", str(picture))
    found = rows(printed)
    assert found["samples"] == ["1,438", "to", "train,", "359", "to", "test"]
    assert found["shape"] == ["1x16x16"]
    assert found["type"] == ["uint8"]
    assert found["values"] == ["0", "to", "255"]
    assert found["source"] == ["sklearn.datasets.load_digits"]
    assert re.fullmatch("[0-9a-f]{64}", found["digest"][0])
    manifest = json.loads((Path(found["folder"][0]) / "manifest.json").read_text())
    assert found["grey"] == [f"{manifest[key][0]:.4g}" for key in ("mean", "std")]
    train, test = (np.load(Path(found["folder"][0]) / f"{p}_labels.npy") for p in ("train", "test"))
    for digit in range(10):
        counts = [str((labels == digit).sum()) for labels in (train, test)]
        assert found[str(digit)] == counts
    assert found["all"] == ["1,438", "359"]
    assert Image.open(picture).size[0] > 500
    assert "drawn in" in printed


@pytest.mark.slow
def test_what_is_to_be_known_of_a_data_set_is_told_each_time(torchyard, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 8, 3), dtype=np.uint8)
    levels[..., 2] = 0
    for label, images in zip(("cat", "dog"), levels, strict=True):
        (tmp_path / label).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    for _ in range(2):  # the second time it is found prepared
        printed = torchyard("inspect", "image_folder", f"path={tmp_path}")
        notes = [line for line in printed.splitlines() if line.startswith("note ")]
        left_out, channel = sorted(notes, key=lambda line: "channel" in line)
        assert "1 of 13 files are not images of a class and are left out: 1 .txt" in left_out
        assert "every pixel of the channel 'blue' is 0 in all training images" in channel


@pytest.mark.slow
def test_vectors_are_summed_up_and_have_no_picture(torchyard, tmp_path):
    picture = tmp_path / "none.png"
    printed = torchyard("inspect", "some_vectors", "--picture", str(picture))
    found = rows(printed)
    assert found["shape"] == ["12"]
    assert found["values"][:2] == ["-7", "to"]
    assert found["low"] == ["30", "10"]
    assert float(found["least"][2]) == pytest.approx(0.9, abs=0.1)
    assert float(found["greatest"][2]) == pytest.approx(12, abs=0.1)
    assert "There is no picture" in printed
    assert not picture.exists()

    found = rows(torchyard("inspect", "some_vectors", "width=3"))
    assert [float(found[str(i)][0]) for i in range(3)] == pytest.approx([0.9, 2, 3], abs=0.1)


# ---- inspect-model


def test_a_model_is_shown_layer_by_layer_for_any_shape(torchyard):
    words = ("mlp", "hidden=[64,32]", "--shape", "3,8,8", "--classes", "7")
    printed = torchyard("inspect-model", *words)
    found = rows(printed)
    assert found["0"] == ["Flatten", "2x192", "0", "–"]
    assert found["1"] == ["Linear", "2x64", "12,352", "yes"]
    assert found["5"] == ["Linear", "2x7", "231", "yes"]
    assert "mlp on samples of 3x8x8, 7 classes: 14,663 parameters, 14,663 trained" in printed


def test_a_model_is_shown_for_a_data_set_and_its_frozen_layers_are_told(torchyard):
    words = ("lenet", "freeze=[conv*]", "--dataset", "cifar100")
    printed = torchyard("inspect-model", *words)
    found = rows(printed)
    assert found["conv1"] == ["Conv2d", "2x6x28x28", "456", "no"]
    assert found["fc3"] == ["Linear", "2x100", "8,500", "yes"]
    assert "66,784 trained and 2,872 not" in printed


# ---- predict


@pytest.fixture(scope="module")
def photos(workspace, tmp_path_factory):
    """A folder of photos of several sizes, in parts."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for label, level in (("dark", 0), ("light", 60)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 190, (90 + 9 * number, 120, 3)) + level
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / part / label / f"{number}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("resize", [None, "pad"])
def test_photos_are_predicted_as_they_were_evaluated(workspace, torchyard, photos, resize):
    """No skew: with the crop of the run's own transform, which is not the default of arrays."""
    from torchyard.core.data.predictions import PredictionTable

    dataset = {"name": "image_folder", "path": str(photos), "image_size": 70, "resize": resize}
    run = train(dataset=dataset, train={"epochs": 1}).run_id
    file = workspace.folder / "mlruns" / "runs" / run / "predictions.parquet"
    evaluated = PredictionTable.read(file)
    files = sorted((photos / "test").glob("*/*.jpg"))
    answer = json.loads(torchyard("predict", run, *map(str, files), "--json", "--top", "2"))
    for row, expected in zip(answer, evaluated.predictions.probabilities, strict=True):
        found = {each["class"]: each["probability"] for each in row["classes"]}
        assert [found[name] for name in evaluated.classes] == pytest.approx(expected, abs=1e-5)


def test_predicting_without_any_run_leaves_no_store_behind(tmp_path):
    [said] = refused(tmp_path, "predict", "abc", "image.png")
    assert said == f"There is no run yet: {tmp_path}/mlruns/mlflow.db is not there."


def test_images_get_their_most_probable_classes_as_evaluated(torchyard, run, digits):
    files, probabilities = digits
    answer = json.loads(torchyard("predict", run, *map(str, files), "--json", "--top", "2"))
    assert [row["image"] for row in answer] == [str(file) for file in files]
    for row, shares in zip(answer, probabilities, strict=True):
        best = np.argsort(-shares)[:2]
        assert [guess["class"] for guess in row["classes"]] == [str(index) for index in best]
        assert [guess["probability"] for guess in row["classes"]] == pytest.approx(
            shares[best], abs=1e-4
        )


def test_one_image_gets_three_classes(torchyard, run, digits):
    (file, _), (shares, _) = digits
    lines = torchyard("predict", run, str(file)).splitlines()
    best = np.argsort(-shares)[:3]
    assert [line.split()[-2] for line in lines[1:]] == [str(index) for index in best]
    assert [line.split()[-1] for line in lines[1:]] == [f"{shares[index]:.1%}" for index in best]
    assert lines[1].startswith(str(file))


def test_a_photo_of_another_size_is_scaled_as_in_preparation(run, digits, tmp_path):
    from torchyard.core.tracking.registry.classifier import ImageClassifier

    model = ImageClassifier("models:/m", (1, 16, 16), ("a",))
    Image.new("RGB", (40, 30), (255, 255, 255)).save(tmp_path / "white.jpg")
    white = model.read(tmp_path / "white.jpg")
    assert (white.shape, white.dtype) == ((1, 16, 16), np.uint8)
    assert white.min() > 250
    assert (model.read(digits[0][0])[0] == np.asarray(Image.open(digits[0][0]))).all()


def test_images_that_cannot_be_read_are_named_and_the_others_answered(
    workspace, run, digits, tmp_path, capsys
):
    (tmp_path / "text.png").write_text("no image")
    files = [tmp_path / "text.png", digits[0][0], tmp_path / "missing.png", tmp_path]
    from torchyard.pipelines.cli import app

    with pytest.raises(UserError) as caught:
        app(["predict", run, *map(str, files), "--json"], standalone_mode=False)
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == [str(files[1])]
    assert caught.value.problems == [
        f"{files[0]}: not an image, or of a format that is not supported",
        f"{files[2]}: No such file or directory",
        f"{tmp_path}: Is a directory",
    ]


def test_a_run_that_is_not_there_is_answered_with_the_nearest(torchyard, run, digits):
    for wanted in (run[:8], f"{run[:-1]}x"):
        with pytest.raises(
            UserError, match=rf"no run with the id or name '{wanted}'. Did you mean {run} "
        ):
            torchyard("predict", wanted, str(digits[0][0]))
    with pytest.raises(UserError, match=r"The last one is [0-9a-f]{32} \(linear·adam·"):
        torchyard("predict", "?", str(digits[0][0]))


def test_a_run_without_a_model_says_why(torchyard, workspace, run, digits):

    client = workspace.client()
    experiment = client.get_run(run).info.experiment_id
    bare = client.create_run(experiment, run_name="bare").info.run_id
    with pytest.raises(UserError, match=rf"run {bare} \(bare\) has no model: it is RUNNING"):
        torchyard("predict", bare, str(digits[0][0]))
    client.set_tag(bare, "model_not_logged", "too odd")
    client.set_terminated(bare)
    with pytest.raises(UserError, match="has no model: too odd"):
        torchyard("predict", bare, str(digits[0][0]))


def test_a_model_of_vectors_takes_no_images(torchyard, digits):
    vectors = train(dataset={"name": "some_vectors"}, train={"epochs": 1}).run_id
    with pytest.raises(UserError, match=f"{vectors}: its model takes vectors of 12, not image"):
        torchyard("predict", vectors, str(digits[0][0]))


class Malicious:
    """Whoever unpickles it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["a pickle for its archive", "code beside it", "another loader"])
def test_a_model_that_would_run_something_is_refused(torchyard, workspace, digits, tmp_path, how):
    """One whose files somebody has changed in the store."""

    run = train(dataset={"name": "digits"}, train={"epochs": 1}).run_id
    client = workspace.client()
    [output] = client.get_run(run).outputs.model_outputs
    location = client.get_logged_model(output.model_id).artifact_location
    folder = Path(url2pathname(urlsplit(location).path))
    marker = tmp_path / "it ran"
    model = yaml.safe_load((folder / "MLmodel").read_text())
    if how == "a pickle for its archive":
        (folder / "data" / "model.pt2").write_bytes(pickle.dumps(Malicious(marker)))
    elif how == "code beside it":
        (folder / "code").mkdir()
        (folder / "code" / "torch.py").write_text(f"open({str(marker)!r}, 'w')")
        for flavor in model["flavors"].values():
            flavor["code"] = "code"
    else:
        (folder / "data" / "python_model.pkl").write_bytes(pickle.dumps(Malicious(marker)))
        model["flavors"]["python_function"] |= {
            "loader_module": "mlflow.pyfunc.model",
            "python_model": "data/python_model.pkl",
        }
    (folder / "MLmodel").write_text(yaml.safe_dump(model))
    with pytest.raises((UserError, RunError)):
        torchyard("predict", run, str(digits[0][0]))
    assert not marker.exists()
