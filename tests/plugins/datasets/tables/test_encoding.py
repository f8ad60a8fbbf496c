"""Tables of numbers and categories, as vectors."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.datasets.tables.tables import prepared, problems, write
from torchyard import PreparedDataset, UserError
from torchyard.core.hosting.host import host
from torchyard.plugins.datasets.tables.encoding import Encoding
from torchyard.testing import assert_dataset_plugin

SPLIT = ["train"] * 6 + ["test"] * 2
SMALL: dict[str, Any] = {
    "age": [20, 30, None, 50, 60, 70, None, 80],
    "height": [1.5, 1.6, 1.7, 1.8, 1.9, 2.0, None, 2.2],
    "city": ["Rome", "Oslo", None, "Rome", "Oslo", "Rome", "Bonn", "Oslo"],
    "smokes": [True, False] * 4,
    "code": [7, 9, 7, 9, 7, 9, 11, 7],
    "label": ["yes", "no"] * 4,
    "split": SPLIT,
}


def made(path: Path, **settings: Any) -> PreparedDataset:
    return prepared("table", path.parent / "cache", path=path, **settings)


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_rows_are_encoded_by_what_training_rows_have(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"t.{kind}", SMALL)
    found = made(path, categorical="code")
    encoding = Encoding.model_validate(found.encoding)
    assert encoding.components == [
        *("age", "age missing", "height", "city=Oslo", "city=Rome", "smokes"),
        *("code=7", "code=9"),
    ]
    assert found.train.samples[:3].tolist() == [
        [20, 0, 1.5, 0, 1, 1, 1, 0],
        [30, 0, pytest.approx(1.6), 1, 0, 0, 0, 1],
        [50, 1, pytest.approx(1.7), 0, 0, 1, 1, 0],
    ]
    assert found.test.samples.tolist() == [
        [50, 1, pytest.approx(1.75), 0, 0, 1, 0, 0],
        [80, 0, pytest.approx(2.2), 1, 0, 0, 1, 0],
    ]
    assert found.notes[1:] == (
        "8 components: 3 columns of numbers, 2 of 4 categories",
        "3 missing numbers are the median of the training rows, and marked as missing where "
        "training rows are, too: age 2, height 1",
        "3 values that are missing, or that no training row has, are of no category, all zeros: "
        "city 2, code 1",
    )
    # As in serving: from what is kept with the model, for rows of which only some columns are so.
    kept = Encoding.model_validate(json.loads(json.dumps(found.encoding)))
    new = pd.DataFrame({"unused": [1], **{name: values[7:] for name, values in SMALL.items()}})
    assert kept.vectors(new).tolist() == found.test.samples[1:].tolist()
    with pytest.raises(UserError, match="the table has no column age, code"):
        kept.vectors(new.drop(columns=["age", "code"]))


def test_other_medians_are_another_data_set(tmp_path: Path) -> None:
    one = made(write(tmp_path / "t.csv", SMALL))
    other = made(write(tmp_path / "t.csv", SMALL | {"city": ["Pisa", *SMALL["city"][1:]]}))
    assert PreparedDataset.open(other.folder).encoding == other.encoding != one.encoding


def test_which_columns_are_learnt_from(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", SMALL | {"weight": [1.0] * 8, "day": [*range(8)]})
    assert made(path, features=["height", "age"]).shape == (3,)
    assert made(path, ignore=["city", "smokes", "code", "weight"]).shape == (4,)
    found = made(path, ignore=["city"], weight="weight", time="day", split=None)
    names = Encoding.model_validate(found.encoding).components
    assert names == ["age", "age missing", "height", "smokes", "code"]


def test_columns_that_cannot_be_encoded(tmp_path: Path) -> None:
    count = 200
    table = {
        "name": [f"n{n}" for n in range(count)],
        "when": pd.date_range("2024-01-01", periods=count),
        "empty": [float("nan")] * count,
        "label": ["a", "b"] * (count // 2),
    }
    path = write(tmp_path / "t.parquet", table)
    assert problems("table", tmp_path / "cache", path=path) == [
        "the column 'name' has 160 different texts: leave it out with dataset.ignore=[name], or "
        "raise dataset.max_categories, which is 100",
        "the column 'when' has times, which are no numbers: leave it out with "
        "dataset.ignore=[when]",
        "the column 'empty' has no value in any training row: leave it out with "
        "dataset.ignore=[empty]",
    ]
    nothing = problems("table", tmp_path / "cache", path=path, ignore=["name", "when", "empty"])
    assert nothing == ["no column is left to learn from"]
    wrong = {"features": ["nmae", "label"], "ignore": ["x"]}
    assert problems("table", tmp_path / "cache", path=path, **wrong) == [
        "dataset.features: there is no column 'nmae'. Did you mean 'name'?  "
        "(has: name, when, empty, label)",
        "dataset.ignore: there is no column 'x'.  (has: name, when, empty, label)",
        "dataset.features: the column 'label' is the label",
    ]


def test_numbers_written_otherwise_are_said(tmp_path: Path) -> None:
    """A cell in a hundred must not turn a number into categories without a word."""
    label = ["a", "b"] * 10
    found = made(write(tmp_path / "t.csv", {"x": ["1,000", *range(19)], "label": label}))
    assert found.notes[2] == (
        "warning: 19 of 20 values of the column 'x' are numbers; others, such as '1,000', make "
        "it categories"
    )
    for table in ({"d": [f"2024-01-{n + 10}" for n in range(20)]}, {"x": [1, 1e300] * 10}):
        [problem] = problems(
            "table", tmp_path / "no", path=write(tmp_path / "t.csv", table | {"label": label})
        )
        assert "has times" in problem or problem.endswith(
            "has numbers that are infinite, or too large, in 10 rows: 2, 4, 6, 8, 10, 12, 14, 16, "
            "18, 20"
        )


def test_types_of_databases(tmp_path: Path) -> None:
    """Decimals are numbers, dates are times, and what has parts is refused by name."""
    columns: dict[str, Any] = {
        "price": [Decimal(f"{n}.25") for n in range(20)],
        "sold": [date(2024, 1, n + 1) for n in range(20)],
        "tags": [["x"]] * 20,
        "label": [Decimal("0.0"), Decimal("1.0")] * 10,
    }
    path = write(tmp_path / "t.parquet", columns)
    found = made(path, time="sold", ignore="tags")
    assert found.train.samples[:2].tolist() == [[0.25], [1.25]]
    assert found.classes == ("0", "1")
    [problem] = problems("table", tmp_path / "no", path=path, time="sold")
    assert problem.startswith("the column 'tags' holds list<element: string>, neither numbers")


VALUES = st.one_of(st.none(), st.floats(-9, 9, width=32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(VALUES, st.sampled_from(["a", "b", None, "1", " b"])), min_size=1))
def test_vectors_are_finite_and_of_the_components(rows: list[tuple[Any, Any]]) -> None:
    frame = pd.DataFrame(rows, columns=["number", "word"])
    frame["number"] = frame["number"].astype(float)
    if not frame.notna().any().all():
        return
    encoding = Encoding.fitted(frame, (), 10)
    vectors = encoding.vectors(frame)
    assert vectors.shape == (len(rows), len(encoding.components))
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    one_hot = vectors[:, [name.startswith("word=") for name in encoding.components]]
    assert one_hot.sum(axis=1).tolist() == [word is not None for _, word in rows]


def test_it_is_a_data_set_as_the_kit_asks_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", SMALL)
    assert_dataset_plugin(host().find("dataset", "table").params(path=path), tmp_path)
