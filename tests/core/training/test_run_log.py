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
from torchyard.core.training.run_log import Line, Offset, RunLog, with_metrics_logged

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


@given(st.data())
def test_a_line_with_a_flipped_bit_is_left_out_with_a_warning(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    log = RunLog(folder)
    for step in (1, 2, 3):
        log.append(Line("RunningLoss", asdict(RunningLoss(step, 0.5))))
    whole, content = list(log.read()), bytearray(log.path.read_bytes())
    bit = data.draw(st.integers(8, 8 * len(content) - 1))  # the first byte is an empty line's
    content[bit // 8] ^= 1 << bit % 8
    log.path.write_bytes(content)
    read = list(log.read())
    assert len(read) < 3
    assert all(line in whole for line in read)


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"\x00\x00", b"\xed\xa0\x80", b"[1]", b'{"a": 1}'])
def test_a_line_that_is_none_is_said_once(tmp_path, caplog, text):
    log = RunLog(tmp_path)
    log.append(Line("text", {"text": "one"}))
    first = len(log.path.read_bytes())
    with log.path.open("ab") as file:
        file.write(b"\n" + text)
    log.append(Line("text", {"text": "two"}))
    for _ in range(2):
        assert [line.values["text"] for line in log.read()] == ["one", "two"]
    assert caplog.messages == [
        f"{log.path}: the line at byte {first + 1} is cut short or damaged, and left out."
    ]


def test_a_line_from_before_there_were_checksums_is_read(tmp_path):
    plain = {"kind": "text", "time": 1, "values": {"text": "old"}}
    RunLog(tmp_path).path.write_text(f"\n{json.dumps(plain)}\n")
    assert next(RunLog(tmp_path).read()).values == {"text": "old"}


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


def test_an_offset_that_is_not_there_or_damaged_is_the_beginning(tmp_path):
    offset = Offset(tmp_path / "sent")
    assert offset.get() == 0
    with offset.locked():
        offset.set(7)
    assert offset.get() == 7
    (tmp_path / "sent").write_bytes((tmp_path / "sent").read_bytes().replace(b"7", b"8", 1))
    assert offset.get() == 0
