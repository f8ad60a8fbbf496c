"""The model card: whole, readable by programs, and without what is nobody's business."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml

from tests.core.report.figures import guesses
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report.run.headline import Headline
from torchyard.core.report.run.model_card import model_card

CLASSES = ("cat", "a|b <i>", "nobody")
TRAINED = {
    "parameters": 61706,
    "seconds": 90.0,
    "images_per_second": 4000.0,
    "precision": "float32",
    "device": "cpu",
    "device_name": "A processor",
    "torch_version": "2.15.0",
    "python_version": "3.11",
}


@pytest.fixture
def prepared(tmp_path) -> PreparedDataset:
    counts = {"train": 4, "test": 10}
    for part, count in counts.items():
        np.save(tmp_path / f"{part}_samples.npy", np.zeros((count, 1, 4, 4), np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", np.arange(count) % 2)
    manifest = {
        "name": "pets",
        "classes": CLASSES,
        "shape": [1, 4, 4],
        "dtype": "uint8",
        "mean": [0.0],
        "std": [1.0],
        "counts": counts,
        "digest": "0123456789abcdef" * 4,
        "source": "/home/somebody/pets",
        "notes": ["2 files were left out"],
        "sizes": {path.name: path.stat().st_size for path in tmp_path.glob("*.npy")},
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return PreparedDataset.open(tmp_path)


@pytest.fixture
def card(prepared) -> str:
    made = guesses([0, 0, *[0, 1] * 4], np.arange(10) % 2, 3)
    headline = Headline(
        "pets", evaluate(made, CLASSES), datetime(2026, 11, 26, tzinfo=UTC), "1a2b3c4d", None
    )
    return model_card(
        *(RunConfig.model_validate({"dataset": {"name": "pets"}}), prepared, made, headline),
        run="lenet #1",
        recipe={"began with": "random weights, seed 0", "loss": "a|b"},
        trained=TRAINED,
        tags={"mlflow.user": "somebody", "weights_digest": "f" * 64},
    )


def test_its_head_is_for_programs(card) -> None:
    head = yaml.safe_load(card.split("---\n")[1])
    [result] = head["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert {"type": "accuracy", "name": "accuracy", "value": 0.9} in result["metrics"]


def test_it_has_the_sections_of_the_template_and_says_what_is_not_known(card) -> None:
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Model Details",
        "## Uses",
        "## Bias, Risks, and Limitations",
        "## How to Get Started with the Model",
        "## Training Details",
        "## Evaluation",
        "## Environmental Impact",
        "## Technical Specifications",
        "## Model Card Authors",
    ]
    assert "Nothing is known of nobody" in card
    assert "2 files were left out" in card
    assert "nan" not in card.lower().replace("nany", "")
    assert "random weights, seed 0" in card


def test_names_mark_nothing_up_and_no_path_is_given_away(card) -> None:
    assert r"a\|b &lt;i&gt;" in card
    assert "<i>" not in card.partition("---\n")[2].partition("---\n")[2]
    assert "/home" not in card
