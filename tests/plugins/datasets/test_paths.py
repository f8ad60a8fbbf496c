"""Paths as parameters, and scratch files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.plugins.datasets.image_files import FLAT, pack, prepared, tree
from torchyard.plugins.datasets.image_folder import ImageFolder
from torchyard.plugins.datasets.sources.formats import open_source


def test_an_abandoned_scratch_file_is_removed(tmp_path: Path) -> None:
    archive = pack(tree(tmp_path / "i", *FLAT), tmp_path / "a.tgz")
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / "scratch-0.tmp").write_bytes(b"left by a process that was killed")
    (downloads / "scratch-0.lock").touch()
    living = open_source(archive, downloads)
    assert living.close
    assert {f.suffix for f in downloads.iterdir()} == {".tmp", ".lock"}
    assert not (downloads / "scratch-0.tmp").exists()
    prepared(archive, tmp_path / "cache")
    (kept,) = downloads.glob("*.tmp")
    assert living.read(next(iter(living.files.values()))), f"{kept} was in use"
    living.close()
    assert not list(downloads.iterdir())


def test_a_missing_path_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "flowers.tar.gz").touch()
    with pytest.raises(
        ValidationError, match=r"no such file or folder: .*/flower\.tar\.gz"
    ) as error:
        ImageFolder(path=tmp_path / "flower.tar.gz")
    assert f"Did you mean '{tmp_path}/flowers.tar.gz'?" in str(error.value)
    with pytest.raises(ValidationError, match=r"no such file or folder: .*/nowhere/at/all"):
        ImageFolder(path=tmp_path / "nowhere/at/all")


def test_a_relative_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "i", *FLAT)
    assert ImageFolder(path=Path("i")).path == tmp_path / "i"


def test_an_empty_path_is_not_the_working_folder() -> None:
    with pytest.raises(ValidationError, match=r"is empty; the working folder is '\.'"):
        ImageFolder(path="")  # type: ignore[arg-type]
