"""docs/data.md: its runs are prepared, on files as its reader has them."""

import itertools
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.plugins.datasets.image_files import tree
from torchyard.core.config.resolve import read_config
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset

DOCUMENT = "data.md"
PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
ROWS = range(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for place in (folder, folder / "photos"):
        tree(place, *(f"{row}.png" for row in ROWS))
    photos = {"file": [f"{row}.png" for row in ROWS], "label": [row % 2 for row in ROWS]}
    more = {"breed": ["a", "b"] * 20, "owner": [row // 3 for row in ROWS]}
    pd.DataFrame(photos | more).to_csv(folder / "photos.csv", index=False)
    plants = {"species": ["rose", "oak"] * 20, "id": [f"plant {row}" for row in ROWS]}
    leaves = {"leaves": [row % 7 for row in ROWS]}
    pd.DataFrame(plants | leaves).to_csv(folder / "plants.csv", index=False)
    return folder


def test_every_run_of_the_page_has_data(line, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    words = itertools.takewhile(lambda word: word != "#", shlex.split(line))
    command, verb, preset, *overrides = words
    assert (command, verb) == ("torchyard", "run")
    resolved = read_config(preset, overrides, PRESETS, host())
    name = resolved.config.dataset.name
    found = prepare_dataset(name, resolved.dataset, tmp_path, lambda *_: None)
    assert len(found.classes) > 1
    assert len(found.train) > len(found.test) > 0
