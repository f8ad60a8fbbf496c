"""Lines that a store refuses, and those that nobody should send."""

import json
import os
from pathlib import Path

import pytest

from tests.core.tracking.runs import DEAD, Server, append_text, start, stored
from torchyard.core.errors import RunError, StoreUnavailableError
from torchyard.core.tracking.ownership.process import owner_tags
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.run_log import Line


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
    append_text(other._delivery, "hello")
    os.chown(other.folder, 12345, 12345)
    with pytest.raises(RunError, match=f"{other.folder} belongs to another user"):
        other._delivery.deliver()
    other._client.set_tag(other.run_id, "torchyard.process", DEAD)
    start().finish("FINISHED")
    run = stored(other)
    assert run.info.status == "KILLED"
    assert "belongs to another user" in run.data.tags["torchyard.reason"]
    assert other._client.list_artifacts(other.run_id) == []


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


def test_what_a_server_refuses_is_not_kept(server: Server) -> None:
    record = start(seed=0)
    with pytest.raises(RunError, match="refused") as failure:
        record.log_parameters({"seed": 1})
    assert not isinstance(failure.value, StoreUnavailableError)
    assert record.pending == 0
    record.finish("FAILED")


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
