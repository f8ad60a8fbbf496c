"""The process that owns a run, named so that a step of the clock changes nothing.

A process is known by its number and by when it started, which Linux counts in ticks since the
machine did (proc(5), `starttime`). Both mean something only within one start of the machine and
within the same namespaces (containers have their own), so the tag names these, too.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import psutil

MACHINE, PROCESS = "torchyard.host", "torchyard.process"  # tags of a run, labels of a flow run
LOCK = "owner.lock"  # in the run's folder: held by the process that owns the run

UNKNOWN = "unknown"
_WHOLE_MACHINE = "4026531836"  # Linux's number of the PID namespace that is no container


@dataclass(frozen=True)
class ProcessIdentity:
    """What tells a process from every other.

    Attributes:
        number: its PID.
        started: ticks from the machine's start to its own; elsewhere than on Linux, seconds.
        boot: this start of the machine.
        namespace: in which the PID and the ticks count; empty where there are none.
        machine: the installation, which outlives its starts; empty where that is not known, as in
            a container, whose image many machines have.
    """

    number: int
    started: str
    boot: str
    namespace: str = ""
    machine: str = ""

    @classmethod
    def of(cls, number: int) -> ProcessIdentity:
        """The process that has this PID now."""
        return cls(number, _started(number) or UNKNOWN, *_surroundings())

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity | None:
        """The process that a tag names; None for a tag that says nothing we understand."""
        fields = re.fullmatch(
            r"(\d{1,9}) started=([\w.]+) boot=([\w-]+)"
            r"(?: namespace=([\d-]+))?(?: machine=(\w+))?",
            text,
            re.ASCII,
        )
        return fields and cls(int(fields[1]), *(found or "" for found in fields.groups()[1:]))

    def __str__(self) -> str:
        known = {"namespace": self.namespace, "machine": self.machine}
        rest = "".join(f" {name}={value}" for name, value in known.items() if value)
        return f"{self.number} started={self.started} boot={self.boot}{rest}"

    def lives(self) -> bool | None:
        """Whether it is alive; None if this process cannot know."""
        boot, namespace, machine = _surroundings()
        if UNKNOWN in (boot, self.boot):
            return None
        if (self.boot, self.namespace) == (boot, namespace):
            started = _started(self.number)
            return None if started == UNKNOWN else started == self.started
        restarted = self.boot != boot and self.machine != "" and self.machine == machine
        return False if restarted else None


def owner_tags() -> dict[str, str]:
    """Tags that identify this process: the machine's name, and the process."""
    return {MACHINE: platform.node(), PROCESS: str(ProcessIdentity.of(os.getpid()))}


def owner_lives(tags: Mapping[str, str], folder: Path | None = None) -> bool | None:
    """Whether the process that a run's tags name is alive; None if that cannot be known here.

    Args:
        tags: of the run.
        folder: the run's, where this machine has it: its owner holds a lock there, which tells
            of processes in other containers, too.
    """
    text = tags.get(PROCESS, "")
    owner = ProcessIdentity.parse(text)
    if owner is None:
        return _older_tag_lives(text, tags.get(MACHINE))
    lives = owner.lives()
    if lives is None and folder is not None:
        return _lock_held(folder, owner.boot)
    return lives


def described_owner(tags: Mapping[str, str]) -> str:
    """The owner in a message: "process 4711 on trainer-2"."""
    number = tags.get(PROCESS, "?").split(" ")[0][:20]
    return f"process {number} on {tags.get(MACHINE, 'a machine without a name')}"


_held: dict[Path, int] = {}  # the locks of this process, by folder


def hold_folder(folder: Path) -> bool:
    """Hold the lock of a run's folder until `leave_folder`; False if another process holds it."""
    if folder in _held:
        return True
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks: the store's lease has to do
        os.close(descriptor)
        return True
    _held[folder] = descriptor
    return True


def leave_folder(folder: Path) -> None:
    """Let go of the folder's lock, if this process holds it."""
    if (descriptor := _held.pop(folder, None)) is not None:
        os.close(descriptor)


def _lock_held(folder: Path, boot: str) -> bool | None:
    """Whether the lock is held. Free, it proves nothing of a process of another kernel."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False if boot == _surroundings()[0] else None


def _started(number: int) -> str | None:
    """When a process started, or UNKNOWN; None if there is no such process."""
    if sys.platform != "linux":
        try:
            return f"{psutil.Process(number).create_time():.2f}"
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            return UNKNOWN
    try:
        status = Path(f"/proc/{number}/stat").read_bytes()
    except OSError:  # another user's process may be hidden
        return UNKNOWN if _exists(number) else None
    # The name before it is in brackets, and may have brackets and spaces in it.
    fields = status.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie has ended


def _exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _surroundings() -> tuple[str, str, str]:
    """This start of the machine, the namespaces, and the machine."""
    if sys.platform != "linux":
        boot = ""
        with suppress(OSError):  # macOS
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            boot = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return boot or UNKNOWN, "", ""
    boot = namespace = machine = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        namespaces = [str(Path("/proc/self/ns", kind).stat().st_ino) for kind in ("pid", "time")]
        namespace = "-".join(namespaces)
        # machine-id(5): the number itself is not to be shown around, a digest of it may be.
        number = Path("/etc/machine-id").read_text().strip()
        if number and namespaces[0] == _WHOLE_MACHINE:
            machine = sha256(f"torchyard {number} {platform.node()}".encode()).hexdigest()[:12]
    return boot or UNKNOWN, namespace, machine


def _older_tag_lives(text: str, machine: str | None) -> bool | None:
    """The same of a tag "PID TIME", as torchyard 0.2 wrote it: that a process is gone is known."""
    number = re.fullmatch(r"(\d{1,9}) [\d.]+", text, re.ASCII)
    if number is None or machine != platform.node():
        return None
    return None if _exists(int(number[1])) else False
