"""Which failures of a task are tried again, by Prefect itself."""

import queue

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

    from torchyard.pipelines.flow import failures

    monkeypatch.setattr(failures, "is_deployed", lambda: deployed)
    calls = []

    @task(**failures.RETRIED | {"retry_delay_seconds": 0})
    def fails():
        calls.append(1)
        raise error

    @flow
    def one_task():
        fails()

    with pytest.raises(type(error)):
        one_task()
    assert len(calls) == tries


@pytest.fixture
def client(workspace):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def test_a_flow_run_names_its_process_before_it_starts(client, monkeypatch):
    from torchyard.core.tracking.ownership.process import owner_tags
    from torchyard.pipelines.commands.arguments import preset_config
    from torchyard.pipelines.flow import pipeline, prefect_calls

    made = []
    monkeypatch.setattr(
        prefect_calls, "run_flow", lambda flow, flow_run, given: made.append(flow_run)
    )
    pipeline.call_pipeline(preset_config("digits", ["train.seed=7"]).config)
    found = client.read_flow_run(made[0].id)
    assert found.state.is_pending()
    assert owner_tags().items() <= found.labels.items()
    assert found.parameters["config"]["train"]["seed"] == 7
    client.delete_flow_run(found.id)


@pytest.mark.parametrize(
    ("deployed", "becomes", "reason"),
    [
        (False, "CANCELLING", "cancelled in Prefect"),
        (False, "PAUSED", "paused in Prefect"),
        (True, "SUSPENDED", "suspended in Prefect, which can resume it"),
        (True, "RESUMED", "suspended in Prefect, which can resume it"),
    ],
)
def test_what_prefect_does_to_a_flow_run_ends_it(client, monkeypatch, deployed, becomes, reason):
    """Its stage is aborted, and the flow run ends as Prefect has it."""
    from prefect import flow
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow
    from prefect.states import Cancelling, Paused, Scheduled, Suspended

    from torchyard.pipelines.flow import failures

    aborted, reasons = queue.Queue(), []
    monkeypatch.setattr(failures, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(failures, "abort_shared_worker", aborted.put)

    def body():
        states = {
            "CANCELLING": Cancelling(),
            "PAUSED": Paused(pause_key="a"),
            "SUSPENDED": Suspended(pause_key="a"),
            "RESUMED": Scheduled(name="Resuming"),
        }
        client.set_flow_run_state(run.id, states[becomes], force=True)
        error = aborted.get(timeout=60)
        reasons.append((failures.ended_as(error), failures.reason_of(error)))
        raise error

    @flow
    def trains():
        return failures.run_cancellable(body)

    if deployed:
        deployment = client.create_deployment(client.create_flow(trains), "trains")
        run = client.create_flow_run_from_deployment(deployment)
        with pytest.raises(Pause):
            run_flow(trains, run)
    else:
        run = client.create_flow_run(trains)
        run_flow(trains, run, return_type="state")
    assert reasons == [("KILLED", reason)]
    ends = {"SUSPENDED": "Suspended", "RESUMED": "Resuming"}
    assert client.read_flow_run(run.id).state.name == ends.get(becomes, "Cancelled")
    client.delete_flow(run.flow_id)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunError("The process died."), "The process died."),
        (UserError(["one", "two"]), "one\ntwo"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(1), "some code in it called exit(1)"),
        (KeyError("fc"), "KeyError: 'fc'"),
        (ValueError(5), "ValueError: 5"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_the_reason_why_a_run_ended_is_in_words(error, reason):
    from torchyard.pipelines.flow.failures import reason_of

    assert reason_of(error) == reason


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
