"""Something between us and MLflow answers in its place, late, or not at all."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchyard
from tests.core.tracking.runs import Proxy, Server, start, stored
from tests.pipelines.command_line import torchyard as command
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.tracking import store
from torchyard.core.tracking.ownership.orphans import sync_run
from torchyard.core.tracking.record import RunRecord

HTML = {"Content-Type": "text/html"}
PAGE = "<html><head><style>b {}</style></head><body><h1>Sign in</h1>to go on</body></html>"
JSON = {"Content-Type": "application/json"}

NO_ANSWERS = {
    "a page": ((200, HTML, PAGE), "answers, but not as MLflow: Sign in to go on"),
    "nothing": ((200, HTML, ""), "status 200"),
    "an empty object": ((200, JSON, "{}"), "status 200"),
    "a list": ((200, JSON, "[]"), "answers, but not as MLflow: "),
    "other types": (
        (200, JSON, '{"run": "x", "experiments": 3, "experiment": 1}'),
        "not as MLflow",
    ),
    "another service": ((200, JSON, '{"status": "ok"}'), "status 200"),
    "no content": ((204, {}, ""), "not as MLflow"),
    "a redirect": ((302, {"Location": "/login"}, ""), "not as MLflow: "),
    "a redirect to itself": ((302, {"Location": "/"}, ""), "(not as MLflow|does not answer)"),
    "unauthorized": ((401, HTML, PAGE), "not as MLflow: status 401, Sign in to go on"),
    "unauthorized, in JSON": ((401, JSON, '{"message": "no"}'), "not as MLflow: .*no"),
    "forbidden": ((403, HTML, PAGE), "not as MLflow: status 403, Sign in to go on"),
    "not found": ((404, HTML, PAGE), "not as MLflow: status 404, Sign in to go on"),
    "not found, in JSON": ((404, JSON, '{"detail": "Not Found"}'), "not as MLflow: .*Not Found"),
    "another method": ((405, HTML, ""), "not as MLflow: status 405, nothing"),
    "too large": ((413, HTML, PAGE), "not as MLflow: status 413"),
    "too many": ((429, HTML, ""), "answers with status 429"),
    "an error": ((500, HTML, PAGE), "answers with status 500"),
    "a bad gateway": ((502, HTML, PAGE), "answers with status 502"),
    "unavailable": ((503, {"Retry-After": "3600"}, ""), "answers with status 503"),
    "a late gateway": ((504, {}, ""), "answers with status 504"),
    "busy MLflow": (
        (503, JSON, '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}'),
        "answers with status 503",
    ),
    "MLflow wants a login": (
        (401, JSON, '{"error_code": "UNAUTHENTICATED", "message": "who?"}'),
        "not as MLflow: .*who",
    ),
}


@pytest.fixture(scope="module")
def before(running: Server) -> Iterator[Proxy]:
    made = Proxy(running.url)
    yield made
    made.close()


@pytest.fixture
def proxy(before: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", before.url)
    yield before
    before.answer, before.only, before.delay = None, "", 0.0


@pytest.fixture(scope="module")
def shared(before: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunRecord]:
    """A run that goes through everything that may stand before its server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", before.url)
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        record = start()
    yield record
    record.finish("KILLED")


@pytest.mark.parametrize("kind", NO_ANSWERS)
def test_an_answer_that_is_none_is_like_none_at_all(
    proxy: Proxy, shared: RunRecord, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = shared
    assert record.sync()
    proxy.answer, said = NO_ANSWERS[kind]
    record.set_tags({"kind": kind})
    record.log_text(kind, "kind.txt")
    record.log_metrics({"train/loss": 0.5}, record.pending)
    assert not record.sync()
    assert record.pending >= 3
    [message] = caplog.messages
    assert re.search(said, message), message
    assert message.endswith("Metrics and files wait on disk.")
    proxy.answer = None
    assert record.sync()
    assert record.pending == 0
    assert stored(record).data.tags["kind"] == kind
    file = record._client.download_artifacts(record.run_id, "kind.txt")
    assert Path(file).read_text() == kind


@pytest.mark.parametrize("kind", ["a page", "nothing", "not found", "unauthorized"])
def test_what_answers_in_mlflows_place_is_told_when_a_run_starts(proxy: Proxy, kind: str) -> None:
    proxy.answer, _ = NO_ANSWERS[kind]
    with pytest.raises(StoreUnavailableError, match=f"{proxy.url} answers, but not as MLflow"):
        start()


def test_a_password_that_no_address_can_have_is_told_how_to_write(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url.replace("//", "//me:hun/ter2@"))
    with pytest.raises(UserError, match=f"'{proxy.url}': .* '/' is written %2F") as error:
        start()
    assert "hun" not in str(error.value)


def test_a_file_that_a_proxy_swallows_is_sent_again(proxy: Proxy) -> None:
    record = start()
    proxy.answer, proxy.only = (200, {}, ""), "PUT"
    record.log_text("whole", "report.md")
    assert record.pending == 1
    proxy.answer = None
    assert record.finish("FINISHED")
    file = record._client.download_artifacts(record.run_id, "report.md")
    assert Path(file).read_text() == "whole"


def test_a_data_set_that_another_run_adds_at_the_same_moment_is_recorded(
    proxy: Proxy, prepared: PreparedDataset
) -> None:
    record = start()
    refused = '{"error_code": "BAD_REQUEST", "message": "(psycopg2.errors.UniqueViolation) ..."}'
    proxy.answer, proxy.only = (400, JSON, refused), "POST"
    other = threading.Timer(1.0, lambda: setattr(proxy, "answer", None))
    other.start()
    record.log_dataset(prepared)
    other.join()
    assert record.pending == 0
    assert stored(record).inputs.dataset_inputs


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_nothing_is_said_to_be_recorded_that_is_not(proxy: Proxy, status) -> None:
    record = start()
    proxy.answer = (200, {}, "")
    assert record.finish(status, "because") is False
    proxy.answer = None
    assert stored(record).info.status == "RUNNING"
    record._client.set_tag(record.run_id, "torchyard.process", "999999999 0.00")
    assert sync_run(record._client, stored(record)).info.status == status


def test_a_server_that_never_answers_is_waited_for_no_longer_than_is_set(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(store, "START_SECONDS", 1.0)
    proxy.delay = 1000.0
    asked = proxy.asked
    record.set_tags({"a": "b"})
    for step in range(20):
        record.log_metrics({"train/loss": 0.5}, step)
        record.set_tags({"a": str(step)})
        record.flush()
    assert proxy.asked <= asked + 2  # one request, and MLflow's own second try
    assert record.finish("FINISHED") is False
    with pytest.raises(RunError, match="does not answer"):
        start()


def test_a_slow_server_is_not_away(proxy: Proxy) -> None:
    proxy.delay = 0.1
    record = start()
    record.set_tags({"a": "b"})
    assert record.finish("FINISHED") is True


def test_unless_it_is_set_an_answer_may_take_ten_seconds_and_all_tries_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import environment_variables as variables

    limits = (variables.MLFLOW_HTTP_REQUEST_TIMEOUT, variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES)
    for each in limits:
        monkeypatch.setenv(each.name, "")  # so that what is set here is undone
        monkeypatch.delenv(each.name)
    store.load_mlflow()
    seconds, again = (int(os.environ[each.name]) for each in limits)
    assert (limits[0].get(), limits[1].get()) == (seconds, again)
    assert seconds >= 10
    assert (1 + again) * seconds <= 30
    assert store.START_SECONDS >= 10


def test_a_dead_proxy_is_not_asked_for_a_server_here(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in Python nor in a flow run of Prefect's worker: no command has begun there."""

    def set_anew() -> None:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
    set_anew()
    record = start()  # as a flow run does
    record.finish("FINISHED")
    set_anew()
    assert record.run_id in set(torchyard.runs()["id"])
    set_anew()
    assert torchyard.load(record.run_id).status == "FINISHED"


@pytest.mark.slow
def test_nor_is_it_by_a_command_which_names_the_proxy_that_cannot_be_used(
    server: Server, tmp_path: Path
) -> None:
    record = start()
    record.finish("FINISHED")
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
    done = command(tmp_path, "runs", MLFLOW_TRACKING_URI=server.url, **proxies)
    [note] = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert note.startswith("note: all_proxy=socks5://127.0.0.1:9 cannot be used: SOCKS needs")
    assert done.returncode == 0
    assert record.name in done.stdout
