"""Another host: a network namespace of Linux, which reaches this machine by one cable alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class SecondHost:
    """The namespace, and how both ends of the cable are addressed.

    Attributes:
        name: of the namespace.
        here, there: addresses of this machine and of the other host.
    """

    name: str
    here: str
    there: str

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that runs there."""
        return ["ip", "netns", "exec", self.name]

    def lose_power(self) -> None:
        """Kill every process there at once."""
        for number in _ip("netns", "pids", self.name).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), 9)


@contextmanager
def second_host() -> Iterator[SecondHost | str]:
    """Set it up, and remove it at the end; a text where that cannot be done: why."""
    number = os.getpid() % 250
    host = SecondHost(f"torchyard-{os.getpid()}", f"10.213.{number}.1", f"10.213.{number}.2")
    cable, end = f"ty{os.getpid()}a", f"ty{os.getpid()}b"
    if shutil.which("ip") is None:
        yield "a second host needs `ip`: apt-get install iproute2"
        return
    commands = [
        f"netns add {host.name}",
        f"link add {cable} type veth peer name {end} netns {host.name}",
        f"addr add {host.here}/24 dev {cable}",
        f"link set {cable} up",
        f"-n {host.name} addr add {host.there}/24 dev {end}",
        f"-n {host.name} link set {end} up",
        f"-n {host.name} link set lo up",
    ]
    try:
        for command in commands:
            if (done := _ip(*command.split())).returncode:
                yield f"a second host needs the right to make namespaces: {done.stderr.strip()}"
                return
        yield host
    finally:
        _ip("link", "delete", cable)
        _ip("netns", "delete", host.name)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)
