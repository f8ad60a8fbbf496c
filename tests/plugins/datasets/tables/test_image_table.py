"""Images that a table lists or holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.plugins.datasets.image_files import pack, png
from tests.plugins.datasets.tables.tables import listed_images, prepared, problems, write
from torchyard import PreparedDataset
from torchyard.core.preparation.prepare import find_prepared
from torchyard.plugins.datasets.tables.image_table import ImageTable


def made(path: Path, **settings: Any) -> PreparedDataset:
    return prepared("image_table", path.parent / "cache", path=path, **settings)


def refused(path: Path, **settings: Any) -> list[str]:
    return problems("image_table", path.parent / "refused", path=path, **settings)


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_a_table_of_paths(tmp_path: Path, kind: str) -> None:
    columns = listed_images(tmp_path / "images")
    columns["path"] = [f"images/{name}" for name in columns["path"]]
    found = made(write(tmp_path / f"t.{kind}", columns))
    assert found.classes == ("cat", "dog")
    assert found.shape == (3, 6, 5)
    assert found.counts == {"train": 16, "test": 4}
    assert np.bincount(found.test.labels).tolist() == [2, 2]
    assert found.notes == (
        "columns: image 'path', label 'label' (dataset.label and so on choose others)",
    )
    spec = ImageTable(path=tmp_path / f"t.{kind}").describe()
    assert spec
    assert spec.shape == found.shape


def test_a_table_of_image_files(tmp_path: Path) -> None:
    contents = [png() for _ in range(300)]
    labels = [n % 3 for n in range(300)]
    cells: Any = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)]
    split = ["train"] * 200 + ["validation"] * 50 + ["test"] * 50
    table = {"image": contents, "label": labels, "split": split}
    plain = made(write(tmp_path / "plain.parquet", table))
    assert plain.classes == ("0", "1", "2")
    assert plain.counts == {"train": 200, "validation": 50, "test": 50}
    assert made(write(tmp_path / "cells.parquet", table | {"image": cells})).digest == plain.digest
    (tmp_path / "files").mkdir()
    for n, content in enumerate(contents):
        (tmp_path / "files" / f"{n}.png").write_bytes(content)
    listed = table | {"image": [f"files/{n}.png" for n in range(300)]}
    assert made(write(tmp_path / "listed.csv", listed)).digest == plain.digest
    assert not [*(tmp_path / "cache").rglob("scratch-*")]
    spec = ImageTable(path=tmp_path / "cells.parquet").describe()
    assert spec
    assert spec.shape == (3, 6, 5)


def test_a_root_may_be_a_folder_or_an_archive(tmp_path: Path) -> None:
    columns = listed_images(tmp_path / "images")
    here = made(write(tmp_path / "images" / "t.csv", columns))
    path = write(tmp_path / "t.csv", columns)
    assert made(path, root=tmp_path / "images").digest == here.digest
    for name in ("a.zip", "a.tar.gz"):
        archive = pack(tmp_path / "images", tmp_path / name)
        assert made(path, root=archive).digest == here.digest
        names = ["./00.png", "no.png", *columns["path"][2:]]
        write(tmp_path / "wrong.csv", columns | {"path": names})
        [problem] = refused(tmp_path / "wrong.csv", root=archive)
        assert problem.startswith("1 of 20 images are missing: no.png; paths start from")


def test_all_missing_files_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    columns = listed_images(tmp_path, 30)
    for name in columns["path"][:12]:
        (tmp_path / name).unlink()
    named = ", ".join(str(tmp_path / name) for name in columns["path"][:10])
    assert refused(write(tmp_path / "t.csv", columns)) == [
        f"12 of 30 images are missing: {named} … and 2 more; paths start from {tmp_path} "
        "(dataset.root)"
    ]
    both = refused(write(tmp_path / "t.csv", columns | {"label": [None, *columns["label"][1:]]}))
    assert both[0] == "the column 'label' has no label in 1 row: 1"
    assert both[1].startswith("12 of 30 images are missing: ")
    columns["path"][3] = None
    assert refused(write(tmp_path / "t.csv", columns)) == [
        "the column 'path' names no image in 1 row: 4"
    ]


def test_broken_files_are_named_or_left_out(tmp_path: Path) -> None:
    contents: list[bytes | None] = [png() for _ in range(20)]
    contents[5], contents[6] = b"no image", None
    table = {"image": contents, "label": ["a", "b"] * 10}
    path = write(tmp_path / "t.parquet", table)
    *both, advice = refused(path)
    problem, missing = sorted(both)
    assert problem.startswith(f"{path}, row 6: not an image")
    assert missing == f"{path}, row 7: the file is empty"
    assert "dataset.broken=skip" in advice


def test_a_changed_table_or_file_is_prepared_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", listed_images(tmp_path))
    params = ImageTable(path=path)
    made(path)
    assert find_prepared("image_table", params, tmp_path / "cache")
    for file in (tmp_path / "03.png", path):
        os.utime(file, (1, 1))
        assert not find_prepared("image_table", params, tmp_path / "cache")
        made(path)


def test_columns_by_other_names(tmp_path: Path) -> None:
    columns = listed_images(tmp_path)
    other = {"Bild": columns["path"], "Art": columns["label"], "Gewicht": [1.5] * 20}
    path = write(tmp_path / "t.csv", other)
    has = "(has: Bild, Art, Gewicht)"
    usual = "image, img, path, file, filename, file_name, filepath, file_path, image_path, "
    assert refused(path, label="Kunst", split="Art") == [
        f"dataset.image: which column? None is named {usual}img_path, image_file  {has}",
        f"dataset.label: there is no column 'Kunst'.  {has}",
    ]
    assert refused(path, image="bild", label="Art") == [
        f"dataset.image: there is no column 'bild'. Did you mean 'Bild'?  {has}"
    ]
    found = made(path, image="Bild", label="Art", weight="Gewicht")
    assert found.train.weights is not None
    assert found.train.weights.tolist() == [1.5] * 16


def test_usual_names_in_any_case_and_none(tmp_path: Path) -> None:
    columns = listed_images(tmp_path, Split=["train"] * 12 + ["test"] * 8, patient_id=[*range(20)])
    columns["File_Name"] = columns.pop("path")
    path = write(tmp_path / "t.csv", columns)
    found = made(path)
    assert found.counts == {"train": 12, "test": 8}
    assert found.train.groups is not None
    assert found.notes[0].startswith(
        "columns: image 'File_Name', label 'label', split 'Split', group 'patient_id' ("
    )
    without = made(path, split=None, group=None)
    assert without.counts == {"train": 16, "test": 4}
    assert without.train.groups is None


def test_folds_go_together(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", listed_images(tmp_path))
    for settings, message in (
        ({"folds": 5}, "fold must be one of the folds, 0 to 4"),
        ({"folds": 5, "fold": 5}, "fold must be one of the folds, 0 to 4"),
        ({"fold": 0}, "fold is one of folds: set dataset.folds"),
    ):
        with pytest.raises(ValidationError, match=message):
            ImageTable(path=path, **settings)  # type: ignore[arg-type]
    found = [made(path, folds=4, fold=fold) for fold in range(4)]
    assert [each.counts for each in found] == [{"train": 15, "test": 5}] * 4
    assert len({each.digest for each in found}) == 4
    assert refused(path, folds=21, fold=0) == ["20 samples cannot be divided into 21 folds"]
