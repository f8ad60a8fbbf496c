"""Files that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchyard.core.data.files import atomic_write, cache_folder, remove_partial


def test_a_file_appears_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "a/.99.file").touch()
    (tmp_path / ".99.folder").mkdir()
    (tmp_path / ".99.folder/file").touch()
    remove_partial(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a/file"]


def test_the_cache_folder_is_the_users_or_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHYARD_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("TORCHYARD_CACHE")
    assert cache_folder().name == "torchyard"
