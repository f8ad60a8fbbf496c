"""An unavailable store: no line is lost or delivered twice, and the order is kept."""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.tracking.runs import Server, model_of, start, stored
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.tracking.delivery import ATTACHMENTS, SENT, LogDelivery
from torchyard.core.tracking.ownership.orphans import sync_run
from torchyard.core.tracking.ownership.process import ProcessIdentity, owner_tags
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import RunningLoss
from torchyard.core.training.run_log import Line, RunLog

DEAD = str(dataclasses.replace(ProcessIdentity.of(os.getpid()), number=999999999))


def log_everything(record: RunRecord, prepared: PreparedDataset, exported: Path) -> None:
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
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
        assert record.pending == 9
        assert [*caplog.messages] == [
            f"The MLflow store {server.url} does not answer. Metrics and files wait on disk."
        ]
    assert stored(record).info.status == "RUNNING"
    # Of a living process nothing is touched; once it is dead, the next run's start sends it.
    start().finish("FINISHED")
    assert stored(record).info.status == "RUNNING"
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    start().finish("FINISHED")
    all_there(record)
    assert record.pending == 0


def test_a_server_that_comes_back_in_mid_run_is_sent_all_in_order(
    server: Server, prepared: PreparedDataset, exported: Path, monkeypatch
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.set_tags({"device": "cuda"})
    record.set_tags({"device": "mps"})
    assert record.pending  # it is not asked for every entry
    assert record.sync()
    record.set_tags({"device": "cpu"})
    assert record.pending == 0
    record.finish("FINISHED")
    all_there(record)


def test_an_entry_that_was_sent_twice_is_recorded_once(
    server: Server, prepared: PreparedDataset, exported: Path, tmp_path: Path
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
    shutil.copytree(record.folder, tmp_path / "before")
    for _ in range(2):  # the second time as by a process that died before it moved the offset
        again = LogDelivery(record._client, stored(record))
        assert len(again) == 9
        again.deliver()
        assert len(again) == 0
        assert list((record.folder / ATTACHMENTS).iterdir()) == []
        shutil.rmtree(record.folder)
        shutil.copytree(tmp_path / "before", record.folder)
    all_there(record)


def test_what_waits_can_be_sent_once_the_prepared_data_are_deleted(
    server: Server, prepared: PreparedDataset, exported: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(prepared.folder, cache)
    record = start()
    with server.away():
        log_everything(record, PreparedDataset.open(cache), exported)
        assert record.finish("FINISHED") is False
    shutil.rmtree(cache)
    assert sync_run(record._client, stored(record)).info.status == "RUNNING"  # its process lives
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    assert sync_run(record._client, stored(record)).info.status == "FINISHED"
    all_there(record)
    assert not (record.folder / "refused.jsonl").exists()


def test_a_store_makes_nobody_send_a_file_that_the_run_did_not_attach(
    server: Server, tmp_path: Path
) -> None:
    """Anybody can write to a shared server: runs, their tags, and folders for the tags to name."""
    client = start()._client
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    experiment = client.get_experiment_by_name("torchyard").experiment_id
    traps = []
    for place in ("elsewhere", "mlruns/runs"):  # and the working folder of a cloned project
        run = client.create_run(experiment, tags=owner_tags() | {"torchyard.process": DEAD})
        trap = tmp_path / place / run.info.run_id
        (trap / "attachments/a").mkdir(parents=True)
        (trap / "attachments/a/link").symlink_to(secret)
        names = (str(secret), f"../../../{secret.name}", "attachments/a/link", "../../secret.txt")
        (trap / "log.jsonl").write_text(
            "\n".join(
                json.dumps({"kind": kind, "time": 0, "values": {"file": name, "folder": None}})
                for name in names
                for kind in ("artifact", "model")
            )
            + "\n"
        )
        client.set_tag(run.info.run_id, "torchyard.folder", str(trap.parent))
        client.set_tag(run.info.run_id, "checkpoints", str(trap))
        traps.append((run.info.run_id, trap))
    start().finish("FINISHED")
    for run_id, trap in traps:
        assert client.get_run(run_id).info.status == "KILLED"
        assert client.list_artifacts(run_id) == []
        assert client.search_logged_models([experiment], f"source_run_id = '{run_id}'") == []
        assert (trap / "attachments/a/link").is_symlink()
    assert secret.read_text() == "hunter2"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_nothing_is_sent_from_a_folder_of_another_user(record: RunRecord) -> None:
    other = start()
    log_text(other._delivery, "hello")
    os.chown(other.folder, 12345, 12345)
    with pytest.raises(RunError, match=f"{other.folder} belongs to another user"):
        other._delivery.deliver()
    other._client.set_tag(other.run_id, "torchyard.process", DEAD)
    start().finish("FINISHED")
    run = stored(other)
    assert run.info.status == "KILLED"
    assert "belongs to another user" in run.data.tags["torchyard.reason"]
    assert other._client.list_artifacts(other.run_id) == []


def test_a_run_that_finished_without_its_server_is_finished_when_resumed(
    server: Server, prepared: PreparedDataset, exported: Path
) -> None:
    record = start()
    with server.away():
        log_everything(record, prepared, exported)
        record.finish("FINISHED")
    with pytest.raises(UserError, match="is finished: there is nothing left to do"):
        RunRecord.resume(record.run_id)
    all_there(record)


def test_what_a_server_refuses_is_not_kept(server: Server) -> None:
    record = start(seed=0)
    with pytest.raises(RunError, match="refused") as failure:
        record.log_parameters({"seed": 1})
    assert not isinstance(failure.value, StoreUnavailableError)
    assert record.pending == 0
    record.finish("FAILED")


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
    assert failure.value.details == ""
    assert capfd.readouterr() == ("", "")
    [warning] = caplog.messages  # once, not for every entry
    assert warning.endswith("is locked by another program. Metrics and files wait on disk.")
    assert record.pending == 2
    record.finish("FINISHED")
    assert (stored(record).data.tags["a"], record.pending) == ("c", 0)


class Store:
    """Accepts what is delivered, and is unavailable after each of `failures` calls.

    Where it `takes` what it fails at, only the answer is lost.
    """

    def __init__(self, folder: Path, failures: tuple[int, ...] = (), takes: bool = False) -> None:
        self.tracking_uri = f"sqlite:///{folder}/mlflow.db"
        self.run = SimpleNamespace(
            info=SimpleNamespace(run_id="a" * 32), data=SimpleNamespace(tags={})
        )
        self.failures, self.takes, self.calls = failures, takes, 0
        self.texts: list[str] = []
        self.points: dict[tuple[str, int, int], float] = {}  # by key, step and timestamp

    def _call(self, effect: Callable[[], object]) -> None:
        self.calls += 1
        fails = self.calls in self.failures
        if not fails or self.takes:
            effect()
        if fails:
            raise OSError("Connection refused")

    def log_artifact(self, run_id: str, file: str, folder: str | None) -> None:
        text = Path(file).read_bytes().decode()
        self._call(lambda: self.texts.append(text))

    def log_batch(self, run_id: str, *, metrics, synchronous: bool) -> None:
        points = {(point.key, point.step, point.timestamp): point.value for point in metrics}
        self._call(lambda: self.points.update(points))

    def delivery(self) -> LogDelivery:
        return LogDelivery(self, self.run)

    def deliver_all(self) -> None:
        """Each time as a new process."""
        for _ in range(20):
            delivery = self.delivery()
            with suppress(StoreUnavailableError):
                delivery.deliver()
            if delivery.log.path.exists():
                sent = int((delivery.folder / SENT).read_text().partition(" ")[0] or 0)
                lines = list(delivery.log.read())
                assert sent in {0, *(line.end for line in lines)}
                assert len(delivery) == sum(line.end > sent for line in lines)
            if not delivery:
                return
        pytest.fail("something stays pending")


def log_text(delivery: LogDelivery, text: str) -> None:
    file = delivery.attachment("a file")
    file.write_bytes(text.encode())
    name = str(file.relative_to(delivery.folder))
    delivery.log.append(Line("artifact", {"folder": None, "file": name}))


@given(st.lists(st.text(), max_size=8), st.integers(0, 8))
def test_delivery_keeps_the_order_and_continues_where_it_was_stopped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], stop: int
) -> None:
    store = Store(tmp_path_factory.mktemp("delivery"), failures=(stop + 1,))
    delivery = store.delivery()
    for text in texts:
        log_text(delivery, text)
    with suppress(StoreUnavailableError):
        delivery.deliver()  # the store becomes unavailable, or the process dies
    assert store.texts == texts[:stop]
    assert len(store.delivery()) == max(0, len(texts) - stop)
    log_text(delivery, "last")
    store.deliver_all()
    assert store.texts == [*texts, "last"]
    assert len(delivery) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 29, bytes(29), b"-0000000000000000005", b"9" * 20]
)
def test_with_a_damaged_offset_no_line_is_lost(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    for step in (1, 2):
        RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(RunningLoss(step, 0.5))))
        store.deliver_all()
    store.points.clear()
    (store.delivery().folder / SENT).write_bytes(content)
    store.deliver_all()
    assert len(store.points) == 2


def test_an_offset_with_a_flipped_bit_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(RunningLoss(1, 0.5))))
    store.deliver_all()
    sent = store.delivery().folder / SENT
    content = sent.read_bytes()
    for bit in range(8 * len(content)):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        sent.write_bytes(spoiled)
        assert len(store.delivery()) == 1  # it is sent again
    sent.write_bytes(content)
    assert len(store.delivery()) == 0


@given(
    st.lists(st.integers(0, 3) | st.text(max_size=3), max_size=12),
    st.sets(st.integers(1, 12), max_size=6),
    st.booleans(),
)
def test_every_line_is_recorded_once_whenever_the_store_or_its_answers_are_lost(
    tmp_path_factory: pytest.TempPathFactory, entries: list[int | str], failures, takes: bool
) -> None:
    store = Store(tmp_path_factory.mktemp("delivery"), tuple(failures), takes)
    first: dict[int, float] = {}  # of a step that is repeated the first value counts
    for number, entry in enumerate(entries):
        if isinstance(entry, str):
            log_text(store.delivery(), entry)
        else:
            event = RunningLoss(entry, number + 0.5)
            RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(event), number))
            first.setdefault(entry, event.loss)
        if number % 3 == 0:
            with suppress(StoreUnavailableError):
                store.delivery().deliver()
    store.deliver_all()
    recorded = [(step, value) for (_, step, _), value in store.points.items()]
    assert sorted(recorded) == sorted(first.items())
    texts = [entry for entry in entries if isinstance(entry, str)]
    distinct = [text for text, _ in groupby(store.texts)]
    assert (distinct if takes else store.texts) == (
        [text for text, _ in groupby(texts)] if takes else texts
    )


def test_lines_that_a_power_cut_took_do_not_hide_those_after_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("one", "two", "three"):
        log_text(store.delivery(), text)
    store.delivery().deliver()
    log = store.delivery().log.path
    log.write_bytes(log.read_bytes()[:-10])
    store.delivery().deliver()
    log_text(store.delivery(), "four")
    store.delivery().deliver()
    assert store.texts == ["one", "two", "three", "four"]


def test_names_that_lines_use_themselves_are_free_for_tags_and_parameters(
    record: RunRecord,
) -> None:
    (record.folder / "last.pt").write_text("weights")
    names = {"file": "last.pt", "metrics": "loss", "kind": "end", "folder": "/"}
    record.set_tags(names)
    record.log_parameters(names)
    assert stored(record).data.params == names
    assert names.items() <= stored(record).data.tags.items()
    assert (record.folder / "last.pt").exists()


def test_a_log_that_cannot_be_written_is_no_matter_while_the_store_answers(
    server: Server,
) -> None:
    record = start()
    shutil.rmtree(record.folder)
    record.folder.write_text("in the way")
    record = RunRecord.open(record.run_id)
    record.set_tags({"sent": "directly"})
    record.log_metrics({"train/loss": 0.5}, 1)
    with pytest.raises(RunError, match=r"report.md cannot be kept in .*: Not a directory"):
        record.log_text("# report", "report.md")
    with (
        server.away(),
        pytest.raises(RunError, match=r"MLflow does not answer, and the run's log .*log.jsonl can"),
    ):
        record.set_tags({"sent": "never"})
    record.finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.tags["sent"]) == ("FINISHED", "directly")
    assert run.data.metrics == {"train/loss": 0.5}


def test_lines_that_cannot_be_delivered_are_set_aside_and_the_others_go_on(
    record: RunRecord,
) -> None:
    dead = start()
    damaged = [
        Line("dataset", {"folder": "/nowhere"}),
        Line("metrics", {"metrics": {"a": "b"}, "step": 1}),
        Line("metrics", {"metrics": 3}),
        Line("no such kind", {}),
        Line("tags", {}),
        Line("artifact", {"file": "../../../../mlflow.db", "folder": None}),
        Line("artifact", {"file": "/etc/hostname", "folder": None}),
        Line("model", {"file": "attachments/x/y"}),
    ]
    for line in damaged:
        dead._delivery.log.append(line)
        dead._delivery.log.append(Line("metrics", {"metrics": {"after": 1.0}, "step": line.time}))
    dead._client.set_tag(dead.run_id, "torchyard.process", DEAD)
    start().finish("FINISHED")
    run = stored(dead)
    assert run.info.status == "KILLED"
    reason = run.data.tags["torchyard.reason"]
    aside = dead.folder / "refused.jsonl"
    assert reason == f"its process ended without reporting why; 8 entries are in {aside}"
    kinds = [json.loads(line)["kind"] for line in aside.read_text().splitlines()]
    assert kinds == [line.kind for line in damaged]
    assert run.data.metrics["after"] == 1.0
    assert dead._client.list_artifacts(dead.run_id) == []
    assert dead.pending == 0


def test_what_waits_is_found_from_another_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start()
    with server.away():
        record.set_tags({"sent": "late"})
        record.finish("FINISHED")
    record._client.set_tag(record.run_id, "torchyard.process", DEAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    start().finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.tags["sent"]) == ("FINISHED", "late")


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"none"])
def test_a_damaged_offset_is_none_and_all_is_sent_again(record: RunRecord, damage: bytes) -> None:
    record.log_metrics({"train/loss": 1.0}, 1)
    record.flush()
    (record.folder / SENT).write_bytes(damage)
    record.log_metrics({"train/loss": 0.5}, 2)
    assert record.flush()
    history = record._client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_a_run_whose_metrics_are_refused_ends_and_can_be_resumed(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    kinds = type(record._client)
    take = kinds.log_batch

    def refuse(self, run_id, metrics=(), **others):
        if any(metric.key == "bad" for metric in metrics):
            raise MlflowException("no such metric")
        return take(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(kinds, "log_batch", refuse)
    record.log_metrics({"bad": 1.0}, 1)
    record.log_metrics({"good": 2.0}, 1)
    record.finish("FAILED", "boom")
    assert stored(record).info.status == "FAILED"
    assert stored(record).data.tags["torchyard.reason"] == "boom"
    again = RunRecord.resume(record.run_id)
    assert "refuses" in caplog.text
    again.log_metrics({"good": 3.0}, 2)
    again.finish("FINISHED")
    run = stored(record)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"good": 3.0})
