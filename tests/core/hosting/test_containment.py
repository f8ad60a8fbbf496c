"""What a plugin's code may not do: end the process, or take a signal for its own."""

import os
import signal

import pytest

from tests.core.hosting.plugin_texts import source
from torchyard.core.hosting.containment import PluginExit, contained
from torchyard.core.hosting.host import Host


def test_only_a_signal_that_came_is_the_users():
    def interrupted():
        raise KeyboardInterrupt("mine")

    own = Host()
    own.load(source("mine"), interrupted)
    assert [broken.reason for broken in own.broken] == ["KeyboardInterrupt: mine"]
    with pytest.raises(KeyboardInterrupt):
        own.load(source("mine"), lambda: signal.raise_signal(signal.SIGINT))


def test_a_plugins_code_leaves_the_process_as_it_was():
    before = (os._exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

    def takes_over():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contained():
            pass
        os._exit(4)

    with pytest.raises(PluginExit, match=r"os\._exit\(4\)"), contained():
        takes_over()
    assert (os._exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_was_put_in_place_of_leaving_stays(monkeypatch):
    monkeypatch.setattr(os, "_exit", told := [].append)  # as a process does that tells its end
    with contained():
        os._exit = print
        with contained():
            pass
    assert os._exit is told


def test_a_child_of_a_plugin_may_leave():
    with contained():
        if (child := os.fork()) == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
