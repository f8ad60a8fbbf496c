"""docs/from-the-blitz.md: every command and every plugin on the page is run as it stands."""

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError
from torchyard.pipelines.worker.process import shared_worker

pytestmark = pytest.mark.slow  # some twenty commands, a second to seven each

ROOT = Path(__file__).parents[2]
DOCUMENT = "from-the-blitz.md"


@pytest.fixture(scope="module")
def page(folder, document):
    """A folder with what the page's reader would have: its plugins, the examples, images."""
    document.write_plugins(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, brightness in (("cat", 60), ("ship", 200)):
            photos = folder / "photos" / part / name
            photos.mkdir(parents=True)
            for number in range(7):
                pixels = random.normal(brightness, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(photos / f"{number}.png")
    Image.fromarray(random.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / "digit.png")
    return folder


@pytest.fixture
def command(page, workspace):
    """Run a command line of the page in this process; returns its output."""

    def run(line):
        folder, arguments = re.fullmatch(
            r"(?:TORCHYARD_PLUGINS=(\S+) )?torchyard (.*)", line
        ).groups()
        with workspace.plugins(folder) if folder else contextlib.nullcontext():
            return workspace.invoke(*shlex.split(arguments))

    return run


def last_run():
    from mlflow import MlflowClient

    runs = MlflowClient("sqlite:///mlruns/mlflow.db").search_runs(
        ["1"], "attributes.status = 'FINISHED'", max_results=1
    )
    return runs[0].info.run_id


def test_every_command_on_the_page_works(line, command, page):
    if "RUN_ID" in line:
        command("torchyard run digits train.epochs=1")
        line = line.replace("RUN_ID", last_run())
    if line == "torchyard run cifar10":  # there is no network here
        line += " dataset.name=image_folder dataset.path=photos train.max_steps=20"
    printed = command(line)
    assert printed.strip()
    if " run " in line:
        assert "test samples right" in printed
    if "--picture" in line:
        assert Image.open(page / "digits.png").size[0] > 100
    if "ddp" in line:
        for process in (0, 1):
            assert (
                f"In Model, process {process}: input size [15, 5], output size [15, 2]" in printed
            )


def test_gradient_norms_and_pictures_are_in_the_run(command):
    from mlflow import MlflowClient

    command("torchyard run digits train.log_gradients=true model.freeze=[conv1] train.epochs=1")
    client, run_id = MlflowClient("sqlite:///mlruns/mlflow.db"), last_run()
    norms = {
        name for name in client.get_run(run_id).data.metrics if name.startswith("gradient_norm/")
    }
    assert norms == {f"gradient_norm/{layer}" for layer in ("conv2", "fc1", "fc2", "fc3")}
    pictures = {file.path for file in client.list_artifacts(run_id)}
    assert {"training_batch.png", "test_images.png", "confident_mistakes.png"} <= pictures


# ---- the mistakes at the page's end ----------------------------------------------------


def test_test_and_training_images_are_two_arrays():
    data = shared_worker().call(
        "prepare",
        config=RunConfig.model_validate({"dataset": {"name": "digits"}}).model_dump(mode="json"),
        cache=str(cache_folder()),
    )
    prepared = PreparedDataset.open(Path(data["folder"]))
    train = {sample.tobytes() for sample in prepared.train.samples}
    shared = [sample for sample in prepared.test.samples if sample.tobytes() in train]
    assert not np.shares_memory(prepared.train.samples, prepared.test.samples)
    assert len(shared) == 0


def test_a_wrong_number_of_features_is_refused_before_any_download(command):
    with pytest.raises(UserError, match="model: 'lenet' cannot take samples of 1x12x12: needs"):
        command("torchyard check digits dataset.image_size=12")


def test_every_test_image_counts_whatever_the_last_batch(command):
    printed = command(
        "torchyard run cifar10 dataset.name=image_folder dataset.path=photos train.max_steps=3"
    )
    assert re.search(r"of 14 test samples right", printed)
    counts = re.findall(r"│ (?:cat|ship) +│ +(\d+) │", printed)
    assert counts == ["7", "7"]
