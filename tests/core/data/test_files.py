"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from torchyard.core.data.files import (
    atomic_write,
    cache_folder,
    check_cache,
    private_folder,
    remove_partial,
    temporary_files_in,
)
from torchyard.core.errors import UserError


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


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("file", "it is not a folder"),
        ("file/below", "Not a directory"),
        ("/proc/torchyard", "No such file or directory"),
        ("~there-is-no-such-account/cache", "is not known"),
    ],
)
def test_a_cache_folder_that_cannot_be_written_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHYARD_CACHE", folder)
    with pytest.raises(UserError, match=f"The cache folder .*{reason}.*TORCHYARD_CACHE"):
        check_cache()
    monkeypatch.setenv("TORCHYARD_CACHE", "made")
    check_cache()
    assert list((tmp_path / "made").iterdir()) == []


def test_an_account_without_a_home_has_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "TORCHYARD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match="The cache folder is not known"):
        cache_folder()


@pytest.mark.parametrize("depth", [0, 20], ids=["short", "longer than a socket's path may be"])
def test_temporary_files_are_in_the_folder_and_go_with_it(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a deep folder"] * depth, "temporary")
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    program = "import tempfile; print(tempfile.mkstemp()[1])"
    with temporary_files_in(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        mine = Path(tempfile.mkdtemp())
        found = subprocess.check_output([sys.executable, "-c", program], text=True).strip()
        assert {path.name for path in folder.iterdir()} == {mine.name, Path(found).name}
        # As the processes of a data loader have it: under Linux its path has 107 bytes at most.
        socket = Path(tempfile.mkdtemp(prefix="pymp-")) / "listener-12345678"
        Listener(str(socket), "AF_UNIX").close()
    assert not folder.exists()
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


def test_a_temporary_folder_that_another_process_made_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with temporary_files_in(tmp_path):
        Path(tempfile.mkstemp()[1]).write_text("x")
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_of_another_user_is_not_private(tmp_path: Path, monkeypatch) -> None:
    assert private_folder(tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another user"):
        private_folder(tmp_path / "a/b")
