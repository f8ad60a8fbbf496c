"""The record of a run, against real MLflow stores: SQLite files and a server over HTTP."""

import json
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.errors import RunError, StoreAwayError, UserError
from torchyard.core.tracking import mlflow_format, outbox, store
from torchyard.core.tracking import record as record_module
from torchyard.core.tracking.mlflow_format import class_metric_keys
from torchyard.core.tracking.outbox import Entry, Outbox
from torchyard.core.tracking.provenance import git_tags
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import check_writable, tracking_uri

CLASSES = ("cat", "狗", 'a"/b', "A__b")
SHAPE = (3, 8, 8)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    counts = {"train": 20, "test": 9}
    for part, count in counts.items():
        samples = random.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        np.save(folder / f"{part}_samples.npy", samples)
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 3)  # none of the last class
    manifest = {
        "name": "toy",
        "classes": CLASSES,
        "shape": SHAPE,
        "dtype": "uint8",
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "counts": counts,
        "digest": "0123456789abcdef" * 4,
        "source": "https://example.org/toy.zip",
        "sizes": {path.name: path.stat().st_size for path in folder.glob("*.npy")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def network():
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(math.prod(SHAPE), len(CLASSES))

        def forward(self, pixels):
            return self.linear(pixels.flatten(1).float() / 255)

    return Network().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    rows = torch.zeros((2, *SHAPE), dtype=torch.uint8)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (rows,), dynamic_shapes=batch), path)
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("a workspace 场") / "mlruns"
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, database: str) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return database


@pytest.fixture
def record(workspace: str) -> Iterator[RunRecord]:
    record = start()
    yield record
    record.finish("KILLED")


def start(**parameters: object) -> RunRecord:
    return RunRecord.start(
        name_stem="lenet·sgd·toy", parameters=parameters, tags={"model": "lenet"}
    )


def stored(record: RunRecord):
    """The run as another client reads it."""
    from mlflow import MlflowClient

    return MlflowClient(record._uri).get_run(record.run_id)


def model_of(record: RunRecord) -> str:
    """The id of the one model a run has."""
    [output] = stored(record).outputs.model_outputs
    return output.model_id


# --- Where runs are kept -------------------------------------------------------------------


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


@pytest.mark.parametrize("uri", ["http://host:5000", "postgresql://me:secret@host/db"])
def test_a_server_is_not_asked_before_the_run(uri: str, tmp_path: Path) -> None:
    check_writable(uri)
    assert list(tmp_path.iterdir()) == []


# --- A run in a SQLite store ---------------------------------------------------------------


def test_a_run_has_a_telling_name_a_source_and_a_page(record: RunRecord) -> None:
    run = stored(record)
    assert re.fullmatch(r"lenet·sgd·toy #\d+", record.name)
    assert run.info.run_name == record.name
    assert run.info.status == "RUNNING"
    assert run.data.tags["model"] == "lenet"
    assert run.data.tags["mlflow.source.name"] == sys.argv[0]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.user"]
    page = (
        f"/#/experiments/{record.experiment_id}/runs/{record.run_id}?workflowType=machine_learning"
    )
    assert record.url == f"http://127.0.0.1:5000{page}"


def test_numbers_count_up_and_artifacts_lie_beside_the_database(
    record: RunRecord, database: str
) -> None:
    second = start()
    second.log_text("one", "notes/one.txt")
    second.finish("FINISHED")
    assert int(second.name.rpartition("#")[2]) == int(record.name.rpartition("#")[2]) + 1
    folder = Path(database.removeprefix("sqlite:///")).parent / "artifacts"
    assert (folder / second.run_id / "artifacts/notes/one.txt").read_text() == "one"


def test_parameters_are_flat_and_readable(record: RunRecord) -> None:
    record.log_parameters(
        {
            "optimizer": {"name": "sgd", "lr": 1e-3, "betas": [0.9, 0.99], "clip": None},
            "train": {"amp": True, "empty": {}},
            "long": "x" * 7000,
            **{f"many.{index}": index for index in range(150)},
        }
    )
    parameters = stored(record).data.params
    assert parameters["optimizer.name"] == "sgd"
    assert parameters["optimizer.lr"] == "0.001"
    assert parameters["optimizer.betas"] == "[0.9, 0.99]"
    assert parameters["optimizer.clip"] == "null"
    assert parameters["train.amp"] == "true"
    assert parameters["train.empty"] == "{}"
    assert parameters["many.149"] == "149"
    assert len(parameters["long"]) == 6000
    assert parameters["long"].endswith("x… (7000 characters in all)")


def test_a_parameter_cannot_change(record: RunRecord) -> None:
    record.log_parameters({"seed": 0})
    record.log_parameters({"seed": 0})
    with pytest.raises(RunError, match="refused: Changing param values"):
        record.log_parameters({"seed": 1})


def test_metrics_wait_in_the_buffer_and_go_out_in_batches(record: RunRecord) -> None:
    sent = []
    log_batch = record._client.log_batch
    record._client.log_batch = lambda *a, **k: (sent.append(len(k["metrics"])), log_batch(*a, **k))
    try:
        for step in range(1200):
            record.log_metrics({"train/loss": step / 10, "train/accuracy": 0.5}, step)
        assert sent == []
        record.flush()
    finally:
        del record._client.log_batch
    assert sent == [1000, 1000, 400]
    history = record._client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(n, n / 10) for n in range(1200)]


def test_an_old_buffer_is_sent_at_once(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "FLUSH_SECONDS", 0.0)
    record.log_metrics({"train/loss": 0.5}, 1)
    assert stored(record).data.metrics == {"train/loss": 0.5}


def test_odd_keys_and_values_are_taken(record: RunRecord) -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)}
    odd = {'tr"ain/l(o)ss': 1.0, "/../x//y/": 2.0, "k" * 400: 3.0, "..": 4.0}
    record.log_metrics(values | odd, 0)
    record.flush()
    metrics = stored(record).data.metrics
    assert all(math.isnan(metrics[key]) for key in "abc")
    assert metrics["d"] == 0.5
    assert metrics["tr_ain/l_o_ss"] == 1.0
    assert metrics["x/y"] == 2.0
    assert metrics["k" * 250] == 3.0
    assert metrics["_"] == 4.0


def test_a_long_description_ends_with_whole_lines(record: RunRecord) -> None:
    record.describe("| row |\n" * 3000)
    note = stored(record).data.tags["mlflow.note.content"]
    assert 7900 < len(note) <= 8000
    assert note.endswith("| row |\n\n… (24000 characters in all)")


def test_figures_are_kept(record: RunRecord) -> None:
    from matplotlib.figure import Figure

    record.log_figure(Figure(), "figures/confusion.png")
    client = record._client
    assert [file.path for file in client.list_artifacts(record.run_id, "figures")] == [
        "figures/confusion.png"
    ]


def test_both_splits_are_inputs_of_the_run(record: RunRecord, prepared: PreparedDataset) -> None:
    record.log_dataset(prepared)
    inputs = stored(record).inputs.dataset_inputs
    found = {given.dataset.name: given for given in inputs}
    assert sorted(found) == ["toy test", "toy train"]
    assert {tag.key: tag.value for tag in found["toy test"].tags} == {"mlflow.data.context": "test"}
    dataset = found["toy train"].dataset
    assert dataset.digest == prepared.digest[:16]
    assert dataset.source_type == "http"
    assert json.loads(dataset.source) == {"url": "https://example.org/toy.zip"}
    profile = json.loads(dataset.profile)
    assert profile["rows"] == 20
    assert profile["rows per class"] == [["cat", 7], ["狗", 7], ['a"/b', 6], ["A__b", 0]]
    assert profile["sha256"] == prepared.digest
    assert "mlflow_tensorspec" in json.loads(dataset.schema)


def test_another_process_continues_a_run_by_its_id(record: RunRecord) -> None:
    again = RunRecord.open(record.run_id)
    assert (again.name, again.experiment_id, again.url) == (
        record.name,
        record.experiment_id,
        record.url,
    )
    with pytest.raises(RunError, match="not found"):
        RunRecord.open("0" * 32)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_sends_the_buffer_and_says_why(workspace: str, status) -> None:
    record = start()
    record.log_metrics({"test/accuracy": 0.9}, 3)
    record.finish(status, "because")
    run = stored(record)
    assert run.info.status == status
    assert run.info.end_time
    assert run.data.tags["torchyard.reason"] == "because"
    assert run.data.metrics == {"test/accuracy": 0.9}


# --- The experiment ------------------------------------------------------------------------


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

    named._client.delete_experiment(named.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", named.experiment_id)
    with pytest.raises(UserError, match=f"experiments restore -x {named.experiment_id}"):
        start()


# --- The model -----------------------------------------------------------------------------


def test_the_model_loads_and_predicts_like_the_network(
    record: RunRecord, prepared: PreparedDataset, exported: Path, network, monkeypatch
) -> None:
    import mlflow
    import torch

    record.log_parameters({"optimizer": {"lr": 0.1}})
    record.log_dataset(prepared)
    record.log_model(
        exported,
        prepared,
        torch_version=torch.__version__,
        metrics={"test/accuracy": 0.75},
        step=2,
    )
    uri = f"models:/{model_of(record)}"
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", record._uri)
    generic, native = mlflow.pyfunc.load_model(uri), mlflow.pytorch.load_model(uri)
    mlflow.pyfunc.load_model(f"runs:/{record.run_id}/model")
    for rows in (1, 2, 7):
        pixels = prepared.test.samples[:rows]
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels)).numpy()
            np.testing.assert_allclose(native(torch.from_numpy(pixels)).numpy(), expected, 1e-6)
        np.testing.assert_allclose(generic.predict(np.asarray(pixels)), expected, 1e-6)

    with pytest.raises(mlflow.MlflowException, match="uint8"):  # the signature is enforced
        generic.predict(np.zeros((2, *SHAPE), np.float64))
    assert generic.metadata.metadata == {"classes": list(CLASSES)}

    logged = record._client.get_logged_model(uri.removeprefix("models:/"))
    assert logged.status == "READY"
    assert logged.source_run_id == record.run_id
    assert logged.params["optimizer.lr"] == "0.1"
    [metric] = logged.metrics
    assert (metric.key, metric.value, metric.step) == ("test/accuracy", 0.75, 2)
    assert (metric.dataset_name, metric.dataset_digest) == ("toy test", prepared.digest[:16])
    run = stored(record)
    assert run.data.metrics["test/accuracy"] == 0.75
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]


def test_the_model_folder_is_what_mlflow_itself_writes(
    record: RunRecord, prepared: PreparedDataset, exported: Path, network, tmp_path: Path
) -> None:
    import mlflow
    import torch
    import yaml
    from mlflow.models import Model

    record.log_model(exported, prepared, torch_version=torch.__version__)
    client = record._client
    ours = Path(client.get_logged_model(model_of(record)).artifact_location[7:])
    ours = Path(urllib.request.url2pathname(str(ours)))
    theirs = tmp_path / "theirs"
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    mlflow.pytorch.save_model(
        network,
        theirs,
        signature=Model.load(ours).signature,
        input_example=np.zeros((2, *SHAPE), np.uint8),
        pip_requirements=(ours / "requirements.txt").read_text().splitlines(),
        extra_files=[str(tmp_path / "classes.json")],
        serialization_format="pt2",
    )

    def files(folder: Path) -> set[str]:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in found if "input_example" not in name}

    assert files(ours) == files(theirs)
    flavors, expected = Model.load(ours).flavors, Model.load(theirs).flavors
    # One thing differs on purpose: the device, so that it loads where there is a GPU.
    assert flavors["python_function"].pop("config") == {"device": "cpu"}
    expected["python_function"].pop("config")
    expected["python_function"].pop("pickle_module_name")  # of no use to an archive
    assert flavors == expected
    for name in ("conda.yaml", "python_env.yaml"):
        assert (
            yaml.safe_load((ours / name).read_text()).keys()
            == yaml.safe_load((theirs / name).read_text()).keys()
        )


def test_a_model_whose_upload_was_cut_short_is_logged_once(
    record: RunRecord, prepared: PreparedDataset, exported: Path, monkeypatch
) -> None:
    with pytest.raises(RunError, match="missing"):
        record.log_model(exported.with_name("none"), prepared, torch_version="2")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def models() -> list[str]:
        of_run = f"source_run_id = '{record.run_id}'"
        return [
            model.status
            for model in record._client.search_logged_models([record.experiment_id], of_run)
        ]

    with monkeypatch.context() as trouble:
        trouble.setattr(outbox, "write_model", full)
        record.log_model(exported, prepared, torch_version="2", metrics={"test/accuracy": 0.5})
    assert (models(), record.unsent) == (["FAILED"], 1)
    record.finish("FINISHED")
    assert (models(), record.unsent) == (["READY"], 0)
    assert record._client.get_logged_model(model_of(record)).metrics[0].value == 0.5

    # Told again, as by a process that died before it noted that it had told.
    repeated = Entry("model", {"data": str(prepared.folder), "metrics": [], "step": 0}, exported)
    outbox.deliver(record._client, record.run_id, repeated)
    assert models() == ["READY"]
    model_of(record)


# --- Trouble -------------------------------------------------------------------------------


def test_a_locked_database_is_one_message(
    record: RunRecord,
    database: str,
    monkeypatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import sqlite3

    from sqlalchemy import event

    def hurry(connection, cursor, statement, *_: object) -> None:
        if "busy_timeout" in statement:  # MLflow waits 20 seconds
            cursor.execute("PRAGMA busy_timeout = 50")

    engine = record._client._tracking_client.store.engine
    event.listen(engine, "after_cursor_execute", hurry)
    other = sqlite3.connect(database.removeprefix("sqlite:///"))
    other.execute("BEGIN EXCLUSIVE")
    try:
        record.set_tags({"a": "b"})
        record.set_tags({"a": "c"})
        with pytest.raises(RunError) as failure:
            RunRecord.open(record.run_id)
    finally:
        other.rollback()
        other.close()
        event.remove(engine, "after_cursor_execute", hurry)
    assert str(failure.value).endswith("is locked by another program.")
    assert "database is locked" in failure.value.details
    assert capfd.readouterr() == ("", "")
    [told] = caplog.messages  # once, not for every entry
    assert told.endswith("is locked by another program. What it should be told waits on disk.")
    assert record.unsent == 2
    record.finish("FINISHED")
    assert (stored(record).data.tags["a"], record.unsent) == ("c", 0)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns/mlflow.db").write_text("no database " * 1000)
    with pytest.raises(UserError, match=r"mlflow\.db is not a readable MLflow database"):
        start()


def test_a_run_that_cannot_be_begun_is_not_left_running(workspace: str, monkeypatch) -> None:
    monkeypatch.setattr(record_module, "flattened", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start()
    client = store.open_store(workspace)
    experiment = client.get_experiment_by_name("torchyard")
    assert client.search_runs([experiment.experiment_id])[0].info.status == "FAILED"


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
        ("something new\nwith details", RunError, "refused: something new"),
    ],
)
def test_what_a_store_says_becomes_one_message_without_the_password(text, kind, says) -> None:
    with pytest.raises(kind) as failure, store.store_errors("postgresql://me:secret@h/d"):
        raise OSError(text)
    assert str(failure.value) == f"The MLflow store postgresql://h/d {says}"


def test_a_bug_is_not_a_store_error() -> None:
    with pytest.raises(TypeError), store.store_errors("sqlite:///x.db"):
        raise TypeError("a bug")


# --- Keys ----------------------------------------------------------------------------------


def test_class_keys_are_readable() -> None:
    names = ["cat", "狗", "T-shirt/top", "T-shirt_top", "CAT", "", "..", '"', "a b", "x" * 300]
    keys = class_metric_keys(names)
    assert keys[:-1] == [
        "test/recall/cat",
        "test/recall/狗",
        "test/recall/T-shirt_top",
        "test/recall/T-shirt_top 2",
        "test/recall/CAT 2",
        "test/recall/class 5",
        "test/recall/class 6",
        "test/recall/class 7",
        "test/recall/a b",
    ]
    assert len(keys[-1]) <= 250


@given(st.lists(st.text() | st.sampled_from(["a", "A", "a 2", "..", "/", "class 1", "ß", "ss"])))
def test_class_keys_are_safe_and_unique(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    keys = class_metric_keys(names)
    assert len({key.casefold() for key in keys}) == len(names)
    for key in keys:
        _validate_metric_name(key)
        assert len(key) <= mlflow_format.MAX_KEY
        assert key.count("/") == 2
        assert mlflow_format.safe_key(key) == key


@given(st.text() | st.text(alphabet="./ a_", max_size=12) | st.text(min_size=240))
@example("..0")
@example("x" * 249 + " .y")
def test_any_key_becomes_one_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    safe = mlflow_format.safe_key(key)
    _validate_metric_name(safe)
    assert 0 < len(safe) <= mlflow_format.MAX_KEY
    assert mlflow_format.safe_key(safe) == safe


@given(st.text(), st.integers(min_value=60, max_value=200))
def test_a_shortened_text_fits(text: str, limit: int) -> None:
    short = mlflow_format.shortened(text, limit)
    assert len(short) <= limit
    assert short == text or short.endswith(f"({len(text)} characters in all)")


# --- Git -----------------------------------------------------------------------------------


def test_the_commit_is_known_in_a_repository_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_tags().get("mlflow.source.git.commit") is None
    git("init", "--initial-branch", "trunk")
    assert git_tags().get("mlflow.source.git.commit") is None
    (tmp_path / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "--message", "one")
    assert git_tags().get("mlflow.source.git.commit") == git("rev-parse", "HEAD")
    assert record.git_tags()["mlflow.source.git.branch"] == "trunk"
    assert record.git_tags()["mlflow.source.git.dirty"] == "false"
    (tmp_path / "a.txt").write_text("b")
    assert record.git_tags()["mlflow.source.git.dirty"] == "true"


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags().get("mlflow.source.git.commit") is None


# --- Other processes -----------------------------------------------------------------------

WHOLE_RECORD = """
    import sys
    from pathlib import Path
    from torchyard.core.tracking.record import RunRecord, check_writable, tracking_uri
    from torchyard.core.data.dataset import PreparedDataset
    check_writable(tracking_uri())
    assert "mlflow" not in sys.modules
    prepared = PreparedDataset.open(Path(sys.argv[1]))
    record = RunRecord.start(name_stem="run", parameters={"a": 1}, tags={"b": "c"})
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0}, 0)
    record.log_text("# report", "report.md")
    record.log_model(Path(sys.argv[2]), prepared, torch_version=sys.argv[3])
    record.finish("FINISHED")
    print(record.name, "torch" in sys.modules)
"""


def whole_record(prepared: PreparedDataset, exported: Path, **environment: str) -> subprocess.Popen:
    import torch

    code = textwrap.dedent(WHOLE_RECORD)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(prepared.folder), str(exported), torch.__version__],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_two_first_runs_at_once_succeed_quietly_and_without_torch(
    prepared: PreparedDataset, exported: Path
) -> None:
    runs = [whole_record(prepared, exported) for _ in range(2)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert sorted(out for out, _ in outputs) == ["run #1 False\n", "run #2 False\n"]
    assert [err for _, err in outputs] == ["", ""]


class Server:
    """MLflow's own server application over real HTTP, in a thread; it can go and come back.

    `mlflow server` as a program imports MLflow twice more: 15 seconds here.
    """

    def __init__(self) -> None:
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        import uvicorn
        from mlflow.server.fastapi_app import app

        config = uvicorn.Config(app, port=self.port, log_level="critical", lifespan="off")
        self._web = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._web.run)
        self._thread.start()
        while not self._web.started:
            time.sleep(0.02)
        self.port = self._web.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._web.should_exit = True
        self._thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing answers within; after it the same store does."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from mlflow.server import constants

    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{folder}/mlflow.db")
        patch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        patch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(folder / "artifacts"))
        patch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
        server = Server()
        yield server
        server.stop()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
    return running


def test_a_server_takes_the_whole_record(
    server: Server, prepared: PreparedDataset, exported: Path, capfd
) -> None:
    record = start(optimizer={"lr": 0.1})
    assert record.url.startswith(f"{server.url}/#/experiments/")
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0, "bad": math.nan}, 0)
    record.log_text("# report", "report.md")
    record.log_model(exported, prepared, torch_version="2.15.0", metrics={"test/accuracy": 0.5})
    record.finish("FINISHED")
    assert capfd.readouterr() == ("", "")

    run = stored(record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == 0.5
    assert math.isnan(run.data.metrics["bad"])
    assert len(run.inputs.dataset_inputs) == 2
    logged = record._client.get_logged_model(model_of(record))
    assert logged.status == "READY"
    files = record._client.list_logged_model_artifacts(logged.model_id, "data")
    assert [file.path for file in files] == ["data/model.pt2"]


def test_a_server_that_is_not_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(RunError, match=r"^The MLflow store http://127.0.0.1:9 does not answer\.$"):
        start()
    assert capfd.readouterr() == ("", "")


# --- A server that goes away ---------------------------------------------------------------


def tell_everything(record: RunRecord, prepared: PreparedDataset, exported: Path) -> None:
    from matplotlib.figure import Figure

    record.log_parameters({"optimizer": {"lr": 0.1}})
    record.set_tags({"device": "cpu"})
    record.log_dataset(prepared)
    record.log_metrics({"train/loss": 1.0, "bad": math.nan}, 1)
    record.log_text("# 报告", "report.md")
    record.log_figure(Figure(), "pictures/confusion.png")
    record.log_model(exported, prepared, torch_version="2.15.0", metrics={"test/accuracy": 0.5})
    record.log_metrics({"train/loss": 0.5}, 2)


def all_there(record: RunRecord) -> None:
    run, client = stored(record), record._client
    assert run.info.status == "FINISHED"
    assert run.info.end_time < time.time() * 1000
    assert run.data.params == {"optimizer.lr": "0.1"}
    assert run.data.tags["device"] == "cpu"
    assert run.data.metrics["test/accuracy"] == 0.5
    losses = client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 0.5)]
    assert len(run.inputs.dataset_inputs) == 2
    assert sorted(file.path for file in client.list_artifacts(record.run_id)) == [
        "pictures",
        "report.md",
    ]
    assert Path(client.download_artifacts(record.run_id, "report.md")).read_text() == "# 报告"
    logged = client.get_logged_model(model_of(record))
    assert (logged.status, logged.metrics[0].value) == ("READY", 0.5)


def test_what_a_server_misses_waits_on_disk_until_it_is_back(
    server: Server, prepared: PreparedDataset, exported: Path, monkeypatch, caplog
) -> None:
    record = start()
    with server.away():
        tell_everything(record, prepared, exported)
        record.finish("FINISHED")
        assert record.unsent == 8
        assert [*caplog.messages] == [
            f"The MLflow store {server.url} does not answer. What it should be told waits on disk."
        ]
    assert stored(record).info.status == "RUNNING"
    # Of a living process nothing is touched; once it is dead, the next run's start sends it.
    start().finish("FINISHED")
    assert stored(record).info.status == "RUNNING"
    record._client.set_tag(record.run_id, "torchyard.process", "999999999 0.00")
    start().finish("FINISHED")
    all_there(record)
    assert record.unsent == 0


def test_a_server_that_comes_back_in_mid_run_is_told_all_in_order(
    server: Server, prepared: PreparedDataset, exported: Path, monkeypatch
) -> None:
    record = start()
    with server.away():
        tell_everything(record, prepared, exported)
        record.set_tags({"device": "cuda"})
    record.set_tags({"device": "mps"})
    assert record.unsent  # it is not asked for every entry
    monkeypatch.setattr(record, "_next_try", 0.0)
    record.set_tags({"device": "cpu"})
    assert record.unsent == 0
    record.finish("FINISHED")
    all_there(record)


def test_an_entry_that_was_sent_twice_is_recorded_once(
    server: Server, prepared: PreparedDataset, exported: Path, tmp_path: Path
) -> None:
    import shutil

    record = start()
    with server.away():
        tell_everything(record, prepared, exported)
        record.finish("FINISHED")
    outbox = record._outbox.folder
    shutil.copytree(outbox, tmp_path / "again")
    assert outbox.send_kept(record._client, record.run_id, record._outbox) == 8
    (tmp_path / "again").rename(outbox.with_name("repeated"))
    outbox.rmdir()
    outbox.with_name("repeated").rename(outbox)
    assert outbox.send_kept(record._client, record.run_id, record._outbox) == 8
    all_there(record)


def test_a_run_that_finished_without_its_server_is_finished_when_taken_up(
    server: Server, prepared: PreparedDataset, exported: Path
) -> None:
    record = start()
    with server.away():
        tell_everything(record, prepared, exported)
        record.finish("FINISHED")
    with pytest.raises(UserError, match="is finished: there is nothing left to do"):
        RunRecord.taken_up(record.run_id)
    all_there(record)


def test_what_a_server_refuses_is_not_kept(server: Server) -> None:
    record = start(seed=0)
    with pytest.raises(RunError, match="refused") as failure:
        record.log_parameters({"seed": 1})
    assert not isinstance(failure.value, StoreAwayError)
    assert record.unsent == 0
    record.finish("FAILED")


@given(st.lists(st.text(), max_size=8), st.integers(0, 8))
def test_an_outbox_keeps_order_and_goes_on_where_it_was_stopped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], stop: int
) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    outbox = Outbox(folder / "run")
    for text in texts:
        (folder / "a file").write_bytes(text.encode())
        outbox.put(Entry("text", {"text": text}, folder / "a file"))
    (folder / "a file").unlink(missing_ok=True)
    told = []
    for entry in outbox.waiting():
        if len(told) == stop:
            break  # the store went away, or the process died
        told.append(entry.values["text"])
        assert entry.attachment.read_bytes() == told[-1].encode()
    assert len(Outbox(folder / "run")) == max(0, len(texts) - stop)
    outbox.put(Entry("text", {"text": "last"}))
    told += [entry.values["text"] for entry in outbox.waiting()]
    assert told == [*texts, "last"]
    assert len(outbox) == 0


def test_an_outbox_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot be kept in .*run either"):
        Outbox(tmp_path / "run").put(Entry("tags", {}))


def test_entries_that_cannot_be_sent_do_no_harm_to_other_runs(record: RunRecord) -> None:
    dead = start()
    dead._outbox.put(Entry("dataset", {"folder": "/nowhere"}))
    dead._client.set_tag(dead.run_id, "torchyard.process", "999999999 0.00")
    start().finish("FINISHED")
    run = stored(dead)
    assert run.info.status == "KILLED"
    reason = run.data.tags["torchyard.reason"]
    assert reason.startswith("its process ended without a word; 1 entries in ")
    assert "cannot be sent" in reason
    assert dead.unsent == 1


def test_what_waits_is_found_from_another_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start()
    with server.away():
        record.set_tags({"told": "late"})
        record.finish("FINISHED")
    record._client.set_tag(record.run_id, "torchyard.process", "999999999 0.00")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    start().finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.tags["told"]) == ("FINISHED", "late")
