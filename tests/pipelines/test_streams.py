"""Streams that cannot be written: what is lost, what is said, with which status a command ends."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.pipelines import streams
from torchyard.pipelines.streams import Output


def outcome(descriptor):
    """The errors that three writes to a descriptor told."""
    told = []
    output = Output(descriptor, told.append)
    text = io.TextIOWrapper(io.BufferedWriter(output), "utf-8")
    for number in range(3):
        print(number, file=text, flush=True)
    assert output.error is (told[0] if told else None)
    return [error.errno for error in told]


def test_what_cannot_be_written_is_lost_and_told_once():
    reader, writer = os.pipe()
    assert outcome(writer) == []
    assert os.read(reader, 100) == b"0\n1\n2\n"
    os.close(reader)
    assert outcome(writer) == [errno.EPIPE]
    os.close(writer)
    with Path("/dev/full").open("wb") as full:
        assert outcome(full.fileno()) == [errno.ENOSPC]


def test_a_descriptor_that_does_not_wait_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told, found = [], bytearray()
    content = os.urandom(1_000_000)  # more than a pipe holds

    def read():
        while len(found) < len(content):
            found.extend(os.read(reader, 10_000))

    thread = threading.Thread(target=read)
    thread.start()
    with io.BufferedWriter(Output(writer, told.append)) as file:
        file.write(content)
    thread.join()
    assert (told, bytes(found)) == ([], content)
    os.close(reader)
    os.close(writer)


@given(st.text(st.characters()), st.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_characters_that_an_encoding_lacks_are_those_of_json(text, encoding):
    streams.codecs.register_error(streams.ESCAPE, streams._escape)
    plain = json.dumps(text, ensure_ascii=False).encode(encoding, streams.ESCAPE)
    assert json.loads(plain.decode(encoding)) == text


COMMAND = [sys.executable, "-m", "torchyard", "plugins", "gate"]


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (">/dev/full", 1, "Standard output cannot be written: No space left on device.\n"),
        (">/dev/full 2>&1", 1, ""),
        ("2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_the_status_of_a_command_whose_output_is_lost(tmp_path, redirected, status, said):
    pipefail = ["bash", "-o", "pipefail", "-c", f'"$@" {redirected}', "bash"]
    done = subprocess.run(
        pipefail + COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr.decode()) == (status, said)
