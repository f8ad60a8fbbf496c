"""The log of a run, whatever happens to who writes it."""

import json
import os
import threading
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.training import run_log
from torchyard.core.training.events import EpochDone, GradientNorms, Progress, RunningLoss
from torchyard.core.training.run_log import Line, RunLog, with_metrics_logged

EPOCH = EpochDone(1, 9, 0.5, 0.9, None, None, 0.1, 100.0, 1.0)


def test_a_log_cut_short_is_read_to_where_it_is_whole(tmp_path):
    emitted = []
    for step in (1, 2):
        emit = with_metrics_logged(tmp_path, emitted.append)
        emit(Progress(1, step, 9, 1.0))
        emit(RunningLoss(step, 0.5))
        with RunLog(tmp_path).path.open("a") as file:
            file.write('\n{"kind": "RunningLoss", "st')
    lines = list(RunLog(tmp_path).read())
    assert [line.event for line in lines] == [RunningLoss(1, 0.5), RunningLoss(2, 0.5)]
    assert len(emitted) == 4
    text = RunLog(tmp_path).path.read_text()
    assert json.loads(text.splitlines()[1])["kind"] == "RunningLoss"
    assert list(RunLog(tmp_path / "none").read()) == []
    assert not (tmp_path / "none").exists()


def test_a_figure_is_in_the_log_before_it_is_passed_on(tmp_path):
    def emit(event):
        assert [line.event for line in RunLog(tmp_path).read()][-1] == event

    for event in (RunningLoss(1, 0.5), GradientNorms(1, {"fc": 0.1}), EPOCH):
        with_metrics_logged(tmp_path, emit)(event)


def test_only_lines_of_the_training_are_events(tmp_path):
    assert Line("EpochDone", asdict(EPOCH)).event == EPOCH
    with pytest.raises(KeyError):
        _ = Line("tags", {"tags": {}}).event


@given(st.lists(st.text(max_size=9), min_size=1, max_size=6), st.data())
def test_a_log_cut_at_any_byte_loses_the_lines_behind_it_alone(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("log")
    log = RunLog(folder)
    for text in texts:
        log.append(Line("text", {"text": text}))
    whole, content = list(log.read()), log.path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    log.path.write_bytes(content[:cut])
    left = [line for line in whole if line.end <= cut]
    assert list(log.read()) == left

    RunLog(folder).append(Line("text", {"text": "next"}))
    assert list(log.read())[:-1] == left
    assert list(log.read())[-1].values == {"text": "next"}
    for line in log.read():  # from any line's end the next ones are read
        after = [each for each in log.read() if each.end > line.end]
        assert list(log.read(line.end)) == after


def test_two_that_append_at_once_write_whole_lines(tmp_path):
    def write(writer):
        log = RunLog(tmp_path)  # with a descriptor of its own, as another process has
        for number in range(500):
            log.append(Line("text", {"writer": writer, "number": number, "text": "x" * number}))

    writers = [threading.Thread(target=write, args=[writer]) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [line.values for line in RunLog(tmp_path).read()]
    assert len(found) == 1500
    for writer in range(3):
        mine = [values["number"] for values in found if values["writer"] == writer]
        assert mine == list(range(500))


def test_a_line_that_the_disk_took_half_of_is_an_error(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    log.append(Line("text", {"text": "one"}))
    with monkeypatch.context() as full:
        full.setattr("os.write", lambda descriptor, text: len(text) - 1)
        with pytest.raises(OSError, match="No space left"):
            log.append(Line("text", {"text": "two"}))


def test_a_line_that_is_being_written_is_read_later(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    log.append(Line("metrics", {"step": 1}))
    begun = len(log.path.read_bytes()) + 20
    log.append(Line("metrics", {"step": 2}))
    log.append(Line("metrics", {"step": 3}))
    rest = log.path.read_bytes()[begun:]
    os.truncate(log.path, begun)
    parse = json.loads

    def parse_while_it_grows(text):
        try:
            return parse(text)
        except ValueError:
            if text.strip():  # the reader was quicker than the writer
                with log.path.open("ab") as file:
                    file.write(rest)
            raise

    monkeypatch.setattr(run_log.json, "loads", parse_while_it_grows)
    seen = list(log.read())
    monkeypatch.undo()
    seen += log.read(seen[-1].end)
    assert [line.values["step"] for line in seen] == [1, 2, 3]
