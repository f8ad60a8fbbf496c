"""The model of a run, given samples in every form."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import torchyard
from torchyard import UserError
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError
from torchyard.core.tracking.queries.recorded import logged_model_id
from torchyard.pipelines.python.model import Model
from torchyard.pipelines.worker.process import shared_worker


@pytest.fixture(scope="module")
def run(workspace):
    return torchyard.run("digits", "train.epochs=1", quiet=True)


@pytest.fixture(scope="module")
def images(workspace, run):
    arguments = {"config": run.config, "cache": str(workspace.folder / "cache")}
    folder = shared_worker().call("prepare", **arguments)["folder"]
    return np.array(PreparedDataset.open(Path(folder)).test.samples[:20])


def test_it_predicts_what_the_evaluation_predicted(run, images):
    found = run.model.predict(images)
    recorded = run.predictions.head(len(images))
    assert found["predicted"].tolist() == recorded["predicted"].tolist()
    shares = np.stack(found["probabilities"])
    assert np.allclose(shares, np.stack(recorded["probabilities"]), atol=1e-6)
    assert np.array_equal(found["confidence"], shares.max(axis=1))
    assert run.model.classes == tuple("0123456789")


def test_paths_pictures_and_arrays_give_the_same(run, images, tmp_path):
    expected = np.stack(run.model.predict(images)["probabilities"])
    grey = images[:, 0]
    paths = [tmp_path / f"{at}.png" for at in range(len(grey))]
    for path, pixels in zip(paths, grey, strict=True):
        Image.fromarray(pixels).save(path)
    for form in (
        paths,
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        [Image.open(path).convert("CMYK").convert("L") for path in paths],
        list(images),
        list(grey),
        [np.stack([pixels] * 3, axis=2) for pixels in grey],
        [paths[0], *images[1:3], *map(Image.fromarray, grey[3:])],
    ):
        assert np.allclose(np.stack(run.model.predict(form)["probabilities"]), expected, atol=1e-6)
    for single in (paths[0], images[0], grey[0], Image.fromarray(grey[0])):
        [row] = run.model.predict(single)["probabilities"]
        assert np.allclose(row, expected[0], atol=1e-6)
    assert run.model.predict(paths).index.tolist() == list(map(str, paths))
    assert len(run.model.predict([])) == 0


def test_a_photo_is_scaled_and_turned_as_a_file_is(run, images, tmp_path):
    photo = Image.fromarray(images[0, 0]).resize((300, 200))
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "photo.png", exif=exif)
    [file] = run.model.predict(tmp_path / "photo.png")["probabilities"]
    [opened] = run.model.predict(Image.open(tmp_path / "photo.png"))["probabilities"]
    assert np.allclose(file, opened, atol=1e-6)


def test_every_sample_that_cannot_be_read_is_named(run, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    wrong = [tmp_path / "missing.png", tmp_path / "text.png", np.zeros((5, 2, 7, 2)), np.zeros(3)]
    with pytest.raises(UserError) as raised:
        run.model.predict(wrong)
    missing, text, many, vector = raised.value.problems
    assert missing == f"{tmp_path}/missing.png: No such file or directory"
    assert text.startswith(f"{tmp_path}/text.png: ")
    assert many.startswith("2: it is not an array of integers")
    assert vector.startswith("3: it is not an array of integers")


def test_vectors_are_checked(workspace):
    settings = ("dataset=random_vectors", "model=mlp", "train.epochs=1")
    run = torchyard.run("digits", *settings, quiet=True)
    size = run.model.shape[0]
    found = run.model.predict([[0.0] * size, np.arange(size)])
    assert found["confidence"].between(0, 1).all()
    assert len(run.model.predict(np.zeros(size))) == 1
    with pytest.raises(UserError) as raised:
        run.model.predict([[0.0], ["a"] * size, [np.nan] * size, "file.png"])
    short, text, missing, file = raised.value.problems
    assert short == f"0: it is of 1, and the model takes {size}"
    assert text == "1: it is not an array of numbers"
    assert missing == "2: it has values that are not float32"
    assert file == "file.png: the model takes vectors, not images"


def test_weights_that_are_not_those_that_were_exported_are_refused(workspace, run):
    other = torchyard.run("digits", "train.epochs=1", "train.seed=1", quiet=True)
    theirs, ours = (
        next(workspace.folder.glob(f"mlruns/artifacts/**/{each}/**/model.pt2"))
        for each in (logged_model_id(found._run) for found in (other, run))
    )
    content = ours.read_bytes()
    ours.write_bytes(theirs.read_bytes())
    try:
        with pytest.raises(RunError, match="its weights are not those that were exported"):
            Model.find(run.run_id).predict(np.zeros((1, 32, 32), np.uint8))
    finally:
        ours.write_bytes(content)
