"""Tables that tests write, and what preparing them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.plugins.datasets.image_files import tree
from torchyard import PreparedDataset, UserError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset


def write(path: Path, frame: Any) -> Path:
    """A table as its suffix says."""
    frame = pd.DataFrame(frame)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        (frame.to_parquet if path.suffix == ".parquet" else frame.to_feather)(path)
    return path


def listed_images(folder: Path, count: int = 20, **columns: Any) -> dict[str, Any]:
    """Images of two classes, and the columns that list them."""
    names = [f"{n:02}.png" for n in range(count)]
    tree(folder, *names)
    return {"path": names, "label": [("cat", "dog")[n % 2] for n in range(count)], **columns}


def prepared(name: str, cache: Path, **settings: Any) -> PreparedDataset:
    params = host().find("dataset", name).params.model_validate(settings)
    return prepare_dataset(name, params, cache, lambda *_: None)


def problems(name: str, cache: Path, **settings: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        prepared(name, cache, **settings)
    assert not [file for file in cache.rglob("*") if file.suffix in (".npy", ".tmp")]
    return [problem.removeprefix(f"dataset {name}: ") for problem in caught.value.problems]
