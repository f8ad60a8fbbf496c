"""Where runs are kept, which experiment they belong to, and what a store's errors mean."""

import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.core.tracking.runs import start
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.folders import user_folder
from torchyard.core.tracking.store import AUDITS, check_writable, current_store, tracking_uri

pytestmark = pytest.mark.usefixtures("environment")


def test_runs_are_kept_in_mlruns_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tracking_uri())
    assert list((tmp_path / "mlruns").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'mlruns'} cannot be written")):
        check_writable(tracking_uri())


def test_an_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"mlruns cannot be written: Permission denied"):
        check_writable(tracking_uri())


def test_a_folder_in_the_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlruns/mlflow.db").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be written"):
        check_writable(tracking_uri())


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "./mlruns"])
def test_plain_files_are_refused_with_the_way_on(uri: str) -> None:
    with pytest.raises(UserError, match="sqlite:///"):
        check_writable(uri)


@pytest.mark.parametrize("uri", ["http://host:5000", "databricks"])
def test_a_server_is_not_asked_before_the_run(uri: str, tmp_path: Path) -> None:
    check_writable(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns/mlflow.db").write_text("no database " * 1000)
    with pytest.raises(UserError, match=r"mlflow\.db is not a readable MLflow database"):
        start()


def test_the_experiment_is_the_one_the_environment_names(
    workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nightly")
    named = start()
    named.finish("FINISHED")
    assert named.name.endswith("#1")
    assert named._client.get_experiment(named.experiment_id).name == "nightly"

    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", named.experiment_id)
    numbered = start()
    numbered.finish("FINISHED")
    assert numbered.experiment_id == named.experiment_id

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "weekly")
    with pytest.raises(UserError, match="set one of them"):
        start()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "99999")
    with pytest.raises(UserError, match="no experiment 99999"):
        start()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "9" * 30)
    with pytest.raises(UserError, match="no experiment 999"):
        start()

    named._client.delete_experiment(named.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", named.experiment_id)
    with pytest.raises(UserError, match=f"experiments restore -x {named.experiment_id}"):
        start()


@pytest.mark.parametrize("name", [" ", " a", "a\nb", "a\x1b[2J", "a\u202eb", "a" * 257, AUDITS])
def test_a_name_that_no_experiment_of_runs_can_have_is_refused_before_any_work(
    workspace: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with pytest.raises(UserError, match=r"^MLFLOW_EXPERIMENT_NAME: '") as caught:
        check_writable(workspace)
    assert str(caught.value).isprintable()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a/b: 模型 🙂 'c'")
    check_writable(workspace)


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("database or disk is full", RunError, "has no space left on its disk."),
        ("attempt to write a readonly database", RunError, "cannot be written."),
        (
            "out-of-date database schema (found x)",
            UserError,
            "was made by another version of MLflow; back it up, "
            "then 'mlflow db upgrade postgresql://h/d'.",
        ),
        ("Connection refused", RunError, "does not answer."),
        (
            "Max retries exceeded (Caused by NameResolutionError(\"Failed to resolve 'h' ("
            '[Errno -2] Name or service not known)"))',
            RunError,
            "does not answer: its name is not known here.",
        ),
        (
            "Max retries exceeded (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
            "(_ssl.c:1006)')))",
            RunError,
            "does not answer: certificate verify failed: self-signed certificate.",
        ),
        ("something new\nwith details", RunError, "refused: something new"),
    ],
)
def test_what_a_store_says_becomes_one_message_without_the_password(text, kind, says) -> None:
    with pytest.raises(kind) as failure, store_errors("postgresql://me:secret@h/d"):
        raise OSError(text)
    assert str(failure.value) == f"The MLflow store postgresql://h/d {says}"
    # What MLflow said is shown only where that is not understood.
    if isinstance(failure.value, RunError):
        assert failure.value.details == (text if says.startswith("refused") else "")


def test_a_bug_is_not_a_store_error() -> None:
    with pytest.raises(TypeError), store_errors("sqlite:///x.db"):
        raise TypeError("a bug")


@pytest.mark.parametrize("template", [True, False])
def test_what_is_made_for_the_runs_is_the_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: bool
) -> None:
    if not template:
        monkeypatch.setattr(store, "template_database", lambda program: tmp_path / "none")
    before = os.umask(0o022)
    try:
        record = start()
        record.log_text("private", "text.txt")
        record.finish("FINISHED")
    finally:
        os.umask(before)
    folder = tmp_path / "mlruns"
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (folder, folder / "mlflow.db", folder / "artifacts", record.folder)
    }
    assert [*modes.values()] == [0o700, 0o600, 0o700, 0o700], modes


def test_a_runs_folder_is_never_one_that_the_store_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "a1").mkdir(parents=True)

    def run(run_id: str) -> Any:
        tags = {"torchyard.folder": str(elsewhere), "checkpoints": str(elsewhere / "a1")}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=tags))

    own = tmp_path / "data/torchyard/runs"
    assert store.run_folder("http://host:5000", run("a1")) == own / "a1"
    assert store.run_folder("http://host:5000", run("../../a1")) == own / "______a1"
    assert stat.S_IMODE(own.stat().st_mode) == stat.S_IMODE(own.parent.stat().st_mode) == 0o700
    database = f"sqlite:///{tmp_path}/other/mlflow.db"
    assert store.run_folder(database, run("a1")) == tmp_path / "other/runs/a1"
    # Where torchyard 0.2 had it, unless somebody else put it there.
    earlier = tmp_path / "mlruns/runs/a1"
    earlier.mkdir(parents=True)
    assert store.run_folder("http://host:5000", run("a1")) == earlier
    earlier.chmod(0o777)
    assert store.run_folder("http://host:5000", run("a1")) == own / "a1"
    # One that several machines share.
    monkeypatch.setenv("TORCHYARD_RUNS", str(tmp_path / "shared"))
    assert store.run_folder("http://host:5000", run("a1")) == tmp_path / "shared/a1"
    assert store.run_folder(database, run("a1")) == tmp_path / "shared/a1"


def test_the_lock_of_an_address_is_where_nobody_else_can_hold_it(tmp_path: Path) -> None:
    with store.store_lock("http://me:secret@host:5000"):
        [lock] = tmp_path.rglob("*.lock")
        assert lock.parent == tmp_path / "data/torchyard/locks"
        assert stat.S_IMODE(lock.parent.stat().st_mode) == 0o700
        assert "secret" not in lock.name


def test_without_a_home_the_working_folder_has_what_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert user_folder("locks") == tmp_path / "mlruns/locks"
    (tmp_path / "mlruns/locks").rmdir()
    (tmp_path / "mlruns/locks").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is not this user's own"):
        user_folder("locks")


def test_no_run_begins_where_its_folder_cannot_be_made(workspace: str) -> None:
    runs = store.runs_folder(workspace)
    runs.parent.mkdir(exist_ok=True)
    if runs.exists():
        runs.rename(runs.with_name("hidden"))
    runs.write_text("in the way")
    try:
        with pytest.raises(UserError, match=f"{runs}: cannot be made: File exists"):
            start()
    finally:
        runs.unlink()
        if runs.with_name("hidden").exists():
            runs.with_name("hidden").rename(runs)


@pytest.mark.parametrize("before", [None, "sqlite:///before.db"])
def test_the_store_of_mlflows_functions_is_put_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Also where one is current within another, and in two threads at once."""
    if before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    with current_store("sqlite:///a.db"), current_store("sqlite:///a.db"):
        pass
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    entered = threading.Barrier(2, timeout=60)

    def use(number: int) -> str:
        entered.wait()
        with current_store(f"sqlite:///{number}.db"):
            time.sleep(0.05)
            return os.environ["MLFLOW_TRACKING_URI"]

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(use, range(2))) == ["sqlite:///0.db", "sqlite:///1.db"]
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
