"""Data sets of Hugging Face's library."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.plugins.datasets.image_files import png
from tests.plugins.datasets.tables.tables import prepared, problems, write
from torchyard import UnreachableError
from torchyard.core.preparation.prepare import find_prepared
from torchyard.plugins.datasets.tables.huggingface import HuggingFace

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
datasets = pytest.importorskip("datasets", reason="needs torchyard[huggingface]")


def images(count: int = 12, **columns: Any) -> Any:
    given = {
        "photo": [{"bytes": png(), "path": f"{n}.png"} for n in range(count)],
        "kind": [n % 3 for n in range(count)],
        **columns,
    }
    kinds = datasets.ClassLabel(names=["pig", "cat", "dog"])
    features = {"photo": datasets.Image(), "kind": kinds}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(given, features=datasets.Features(features))


def saved(folder: Path, data: Any) -> Path:
    data.save_to_disk(str(folder))
    return folder


def test_images_in_splits(tmp_path: Path) -> None:
    splits = {"train": images(), "validation": images(6), "test": images(9)}
    path = saved(tmp_path / "saved", datasets.DatasetDict(splits))
    found = prepared("huggingface", tmp_path / "cache", path=str(path), label="kind")
    assert found.classes == ("cat", "dog", "pig")
    assert found.counts == {"train": 12, "validation": 6, "test": 9}
    assert found.test.labels.tolist() == [2, 0, 1] * 3
    with_photos = [np.asarray(row["photo"]) for row in splits["test"]]
    assert (found.test.samples == np.moveaxis(np.stack(with_photos), 3, 1)).all()
    assert not [*(tmp_path / "cache").rglob("scratch-*")]
    # All rows together, divided anew.
    together = prepared(
        "huggingface", tmp_path / "cache", path=str(path), label="kind", split=None, folds=3, fold=0
    )
    assert together.counts == {"train": 18, "test": 9}


def test_one_split_and_groups(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", images(12, who=[f"p{n % 4}" for n in range(12)]))
    found = prepared("huggingface", tmp_path / "cache", path=str(path), label="kind", group="who")
    assert found.train.groups is not None
    assert found.test.groups is not None
    assert not {*found.train.groups} & {*found.test.groups}
    params = HuggingFace(path=str(path), label="kind", group="who")
    assert find_prepared("huggingface", params, tmp_path / "cache")
    os.utime(next(path.glob("*.arrow")), (1, 1))
    assert not find_prepared("huggingface", params, tmp_path / "cache")


def test_without_images_it_is_a_table(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "age": [1.0, 2.0, None, 4.0] * 5,
        "city": ["Rome", "Oslo"] * 10,
        "label": ["yes", "no"] * 10,
    }
    path = saved(tmp_path / "saved", datasets.Dataset.from_dict(columns))
    found = prepared("huggingface", tmp_path / "cache", path=str(path))
    table = write(tmp_path / "t.parquet", columns)
    assert found.digest == prepared("table", tmp_path / "cache", path=table).digest


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is no folder that `save_to_disk` wrote"),
        (tmp_path / "no", "no such folder"),
    ):
        with pytest.raises(ValidationError, match=message):
            HuggingFace(path=str(path))
    path = saved(tmp_path / "saved", images())
    assert problems("huggingface", tmp_path / "cache", path=str(path), image="kind", label="k") == [
        "dataset.image: 'kind' is no column of images  (has: photo)"
    ]
    assert problems("huggingface", tmp_path / "cache", path=str(path), label="knid") == [
        "dataset.label: there is no column 'knid'. Did you mean 'kind'?  (has: kind)"
    ]
    other = datasets.DatasetDict(train=images(), test=images().remove_columns("kind"))
    [problem] = problems("huggingface", tmp_path / "cache", path=str(saved(tmp_path / "o", other)))
    assert problem == f"{tmp_path}/o: the columns of test differ from the rest"
    (path / "dataset_info.json").write_text("{")
    [problem] = problems("huggingface", tmp_path / "cache", path=str(path), label="kind")
    assert problem.startswith(f"{path} cannot be read: ")


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="nobody/nothing: Hugging Face's hub does not") as e:
        HuggingFace(path="nobody/nothing").build(tmp_path)
    assert "dataset.path=FOLDER" in str(e.value)


def test_the_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install 'torchyard\[huggingface\]'"):
        HuggingFace(path="mnist")
