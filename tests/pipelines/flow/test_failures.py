"""Which failures of a task are tried again, by Prefect itself."""

import pytest

from torchyard.core.errors import RunError, StoreUnavailableError, UnreachableError, UserError


@pytest.mark.parametrize(
    ("error", "deployed", "tries"),
    [
        (UnreachableError("no connection"), True, 3),
        (UnreachableError("no connection"), False, 1),  # a person waits, and can name a mirror
        (StoreUnavailableError("locked"), False, 3),
        (UserError("model: no model named 'x'"), True, 1),
        (RunError("the worker died"), True, 1),
    ],
)
def test_only_what_should_be_retried_is_retried(workspace, monkeypatch, error, deployed, tries):
    from prefect import flow, task

    from torchyard.pipelines.flow.failures import RETRIED

    if deployed:
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-a-deployment")
    calls = []

    @task(**RETRIED | {"retry_delay_seconds": 0})
    def fails():
        calls.append(1)
        raise error

    @flow
    def one_task():
        fails()

    with pytest.raises(type(error)):
        one_task()
    assert len(calls) == tries


def test_the_tasks_that_can_profit_are_the_ones_that_have_retries():
    from torchyard.pipelines.flow import pipeline

    retried = {
        name: getattr(pipeline, name).retries
        for name in ("prepare_data", "train_model", "evaluate_model", "report_per_class")
    }
    assert retried == {
        "prepare_data": 2, "train_model": 0, "evaluate_model": 2, "report_per_class": 2,
    }  # fmt: skip


def test_a_server_that_is_away_is_unreachable_and_a_missing_file_is_not(tmp_path):
    import http.server
    import threading

    from torchyard.plugins.datasets.downloads import fetch

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(int(self.path.strip("/")))

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for status, kind in ((503, UnreachableError), (429, UnreachableError), (404, UserError)):
            with pytest.raises(UserError) as caught:
                fetch(tmp_path / "file", [f"{address}/{status}"], "0" * 64)
            assert type(caught.value) is kind
        server.shutdown()
    with pytest.raises(UnreachableError):
        fetch(tmp_path / "file", ["http://127.0.0.1:9/x"], "0" * 64)
