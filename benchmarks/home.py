"""A scratch home for what is measured, which knows every process that runs in it.

Nothing of the user's is read or written: home, caches, Prefect's database, MLflow's store and
compiled code are below the home's folder. All processes, detached servers included, inherit
a mark in their environment: so they are waited for, weighed and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from torchyard.pipelines.worker.process import start_variables

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / ".venv" / "bin" / "python"
OURS = Path(sys.executable)
MARK = "TORCHYARD_BENCHMARK"
FOREIGN = ("PREFECT", "MLFLOW", "TORCHYARD", "TORCHINDUCTOR", "VIRTUAL_ENV", "PYTHONPATH")
SAMPLE_SECONDS = 0.2
MIB = 1024  # KiB


class BenchmarkError(Exception):
    """Something that was measured did not do what it should."""


@dataclass(frozen=True)
class Finished:
    """A process that has ended: wall-clock seconds from start to end, and what it printed."""

    seconds: float
    output: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects among its lines."""
        found = []
        for line in self.output.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found


@dataclass
class Weight:
    """The most memory that all processes together took, in MiB, shared pages counted once.

    Attributes:
        total: proportional set size; `anonymous` and `files` are its two parts at that moment.
        most_anonymous: the peak of what is no copy of a file: the kernel cannot just drop it.
        shares: what each program had of `total`.
    """

    total: float = 0
    anonymous: float = 0
    files: float = 0
    most_anonymous: float = 0
    shares: dict[str, float] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def add(self, processes: list[psutil.Process]) -> None:
        """Weigh the processes now."""
        sums = dict.fromkeys(("Pss", "Pss_Anon", "Pss_File", "Pss_Shmem"), 0.0)
        shares: dict[str, float] = {}
        for process in processes:
            with contextlib.suppress(OSError, psutil.Error):
                name = _program(process.cmdline())
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                    key = line.partition(":")[0]
                    if key in sums:
                        size = int(line.split()[1]) / MIB
                        sums[key] += size
                        shares[name] = shares.get(name, 0) + (size if key == "Pss" else 0)
        self.most_anonymous = max(self.most_anonymous, sums["Pss_Anon"])
        if sums["Pss"] > self.total:
            self.total, self.anonymous = sums["Pss"], sums["Pss_Anon"]
            self.shares = shares
            self.files = sums["Pss_File"] + sums["Pss_Shmem"]


class Home:
    """One scratch home.

    Args:
        folder: made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        self.environment = kept | {
            MARK: str(folder),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "xdg"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_PORT": str(_free_port()),
            "TORCHYARD_CACHE": str(self.cache),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TMPDIR": str(folder / "tmp"),
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
        }
        (folder / "tmp").mkdir()

    def run(
        self,
        *command: str,
        status: int = 0,
        timeout: float = 1200,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Finished:
        """Run a command to its end, with further environment variables.

        Raises:
            BenchmarkError: it ended with another status than `status`, or not in time.
        """
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            self.end()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchmarkError(f"{_shown(command)}: not done in {timeout:g} s") from None
            raise
        seconds = time.perf_counter() - started
        if process.returncode != status:
            last = "\n".join((output + errors).strip().splitlines()[-12:])
            raise BenchmarkError(f"{_shown(command)}: exit status {process.returncode}\n{last}")
        return Finished(seconds, output)

    def torchyard(self, *arguments: str, status: int = 0) -> Finished:
        """Run `torchyard …`."""
        return self.run(str(OURS.with_name("torchyard")), *arguments, status=status)

    def script(self, module: str, *arguments: object, python: Path = OURS) -> dict[str, Any]:
        """Run a module of this folder; gives the JSON object that it printed last."""
        command = [str(python), "-m", f"benchmarks.{module}", *map(str, arguments)]
        variables = {"PYTHONPATH": str(ROOT)}
        if module.startswith("own."):
            variables |= start_variables({})  # as a run starts its torch process
        ended = self.run(*command, variables=variables)
        if not ended.events:
            raise BenchmarkError(f"{module} printed no result:\n{ended.output[-500:]}")
        return ended.events[-1]

    def processes(self) -> list[psutil.Process]:
        """All that run in this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """MLflow's database, to read what is recorded."""
        file = self.work / "mlruns" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            yield database

    def settle(self, seconds: float = 30) -> None:
        """Wait until nothing runs: a run's Prefect server goes a little after the run.

        Raises:
            BenchmarkError: something stays.
        """
        end = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > end:
                names = [" ".join(process.cmdline())[:80] for process in left]
                raise BenchmarkError(f"still there after {seconds:g} s: {names}")
            time.sleep(0.1)

    def end(self) -> None:
        """Kill whatever still runs here."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    @contextlib.contextmanager
    def weighed(self) -> Iterator[Weight]:
        """Weigh what runs here, five times a second, until the `with` ends."""
        weight = Weight()

        def watch() -> None:
            while not weight._ended.wait(SAMPLE_SECONDS):
                weight.add(self.processes())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield weight
        finally:
            weight._ended.set()
            watcher.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(command: list[str]) -> str:
    """The module or script that a Python process runs."""
    if "-m" in command:
        return command[command.index("-m") + 1]
    return next((Path(word).name for word in command[1:] if not word.startswith("-")), "python")


def _shown(command: tuple[str, ...]) -> str:
    return " ".join([Path(command[0]).name, *command[1:]])
