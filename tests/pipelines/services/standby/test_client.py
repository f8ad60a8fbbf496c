"""A command's process, while another one does its work."""

from __future__ import annotations

import os
import signal
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is none elsewhere")


def test_a_closed_terminal_does_not_end_it() -> None:
    from torchyard.pipelines.services.standby.client import _forwarding

    before = signal.signal(signal.SIGHUP, lambda number, frame: pytest.fail("it would have ended"))
    try:
        with _forwarding(os.getpid()):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
