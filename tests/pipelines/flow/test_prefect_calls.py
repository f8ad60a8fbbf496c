"""Calls to Prefect that fail, hang or take long: the run goes on, and its end is limited."""

from __future__ import annotations

import threading
import time

import pytest

from torchyard.pipelines.flow.prefect_calls import limited_end, recorded, tell


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", "0.2")


def test_a_call_that_fails_or_hangs_is_a_warning(caplog):
    done = []
    tell("name", lambda: done.append(1))
    assert (done, caplog.messages) == ([1], [])

    def fail():
        raise ValueError("<html>")

    tell("link", fail)
    never = threading.Event()
    tell("report", never.wait)
    never.set()
    assert caplog.messages == [
        "Prefect has no link of this run: <html>",
        "Prefect has no report of this run: no answer for 0.2 seconds.",
    ]


@pytest.mark.parametrize("error", [None, RuntimeError("the loss became nan")])
def test_a_recorded_run_is_left_when_prefect_does_not_let_go(error):
    left = threading.Event()
    said = []
    with limited_end(lambda error: (said.append(error), left.set())) as end:
        try:
            with recorded():
                if error:
                    raise error
        except RuntimeError:
            pass
        assert (end.recorded, end.error) == (True, error)
        assert left.wait(60)
    assert said == [error]


def test_a_run_that_prefect_has_taken_is_not_left():
    said = []
    with limited_end(said.append), recorded():
        pass
    time.sleep(0.5)
    assert said == []
