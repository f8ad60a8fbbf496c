"""Measure on a GPU, section by section: `python -m benchmarks.gpu --seconds 400`.

Each section has a process of its own and a share of the time that is left. The JSON file is
written anew with every figure, so that whatever ends this loses none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.archive import PACKED
from benchmarks.gpu.report import write_json

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
# The name of a section: where its function is, and its share of the time.
SECTIONS = {
    "prepare": ("data:prepare", 25),
    "devices": ("correctness:devices", 35),
    "resume": ("correctness:resume", 50),
    "throughput": ("throughput:measure", 95),
    "eager": ("execution:eager", 50),
    "graphs": ("execution:graphs", 25),
    "compiled": ("execution:compiled", 60),
    "accuracy": ("accuracy:measure", 60),
    "decoding": ("data:decode", 15),
    "airbench": ("accuracy:airbench", 60),
}
LEAST_SECONDS = 10.0  # of a section; its process takes half of that to start
GRACE_SECONDS = 12.0  # a section ends itself; after so long it is ended


class Benchmark:
    """The sections' processes, and the files that they fill.

    Args:
        options: of the command line.
        work: a folder for their data, removed by the caller.
        log: gets what they print.
    """

    def __init__(self, options: argparse.Namespace, work: Path, log: IO[str]) -> None:
        self._options, self._work, self._log = options, work, log
        self._ends = time.monotonic() + options.seconds
        self._states: dict[str, dict[str, Any]] = {}
        paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with contextlib.suppress(OSError):
            paths += _stand_in(work)
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TORCHYARD_CACHE": str(work / "cache"),
            "TORCHYARD_PLUGINS": str(Path(__file__).parent / "plugins"),
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        }

    def say(self, text: str) -> None:
        """Print a line, and keep it."""
        print(text, flush=True)
        self._log.write(text + "\n")
        self._log.flush()

    def run(self) -> bool:
        """Run the sections in their order; gives whether all came to their end."""
        names = [name for name in SECTIONS if name in {"prepare", *self._options.sections}]
        for number, name in enumerate(names):
            left = self._ends - time.monotonic()
            shares = [SECTIONS[later][1] for later in names[number:]]
            seconds = left * shares[0] / sum(shares)
            if left < LEAST_SECONDS:
                self._states[name] = {"state": "skipped: no time left"}
                continue
            self._section(name, max(seconds, LEAST_SECONDS))
            self.write()
        self.write()
        return all(state["state"] == "done" for state in self._states.values())

    def _section(self, name: str, seconds: float) -> None:
        self.say(f"--- {name}: {seconds:.0f} s")
        options = self._options
        command = [sys.executable, "-m", "benchmarks.gpu.section", name, SECTIONS[name][0]]
        command += ["--device", options.device, "--data", str(options.data.absolute())]
        command += ["--work", str(self._work), "--seconds", str(seconds)]
        command += ["--tiny"] * options.tiny
        command += ["--airbench", *(str(file.absolute()) for file in options.airbench)]
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self._work,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        printer = threading.Thread(target=self._print, args=(process.stdout,), daemon=True)
        printer.start()
        state = "done"
        try:
            while True:
                passed = time.monotonic() - started
                self._states[name] = {"state": "running", "seconds": round(passed, 1)}
                self.write()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if status := process.wait(timeout=1):
                        state = f"ended with status {status}"
                    break
                if passed > seconds + GRACE_SECONDS:
                    state = f"stopped after {passed:.0f} s"
                    break
        finally:
            # Its own children, too: workers of a DataLoader, of the compiler.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printer.join(timeout=5)
        self._states[name] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
        self.say(f"--- {name}: {state}")

    def _print(self, output: IO[str]) -> None:
        for line in output:
            self.say(line.rstrip("\n"))

    def write(self) -> None:
        """Write the result from what the sections have so far."""
        figures: dict[str, Any] = {}
        for name in SECTIONS:
            with contextlib.suppress(FileNotFoundError):
                figures[name] = json.loads((self._work / f"{name}.json").read_text("utf-8"))
        facts = figures.get("prepare", {}).pop("facts", None)
        sections = {name: state | figures.get(name, {}) for name, state in self._states.items()}
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        write_json(self._options.out, {"date": date, "facts": facts, "sections": sections})


def _stand_in(work: Path) -> list[str]:
    """Where torchyard is not installed: a folder that says its version, which the host asks for."""
    try:
        importlib.metadata.version("torchyard")
    except importlib.metadata.PackageNotFoundError:
        folder = work / "metadata"
        (folder / "torchyard.dist-info").mkdir(parents=True)
        text = "Metadata-Version: 2.1\nName: torchyard\nVersion: 0\n"
        (folder / "torchyard.dist-info" / "METADATA").write_text(text)
        return [str(folder)]
    return []


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 where a section did not come to its end."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--seconds", type=float, default=400, help="for everything")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--data", type=Path, default=PACKED, help="see benchmarks.gpu.data")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON; a .log goes beside it")
    parser.add_argument(
        "--airbench", type=Path, nargs="*", default=[], help="files of cifar10-airbench to run, too"
    )
    parser.add_argument("--tiny", action="store_true", help="try it: figures mean nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if not options.data.is_file():
        parser.error(f"{options.data}: make it with `python -m benchmarks.gpu.data`")
    # Terminated, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="torchyard-gpu-", ignore_cleanup_errors=True) as work,
        options.out.with_suffix(".log").open("w", encoding="utf-8") as log,
    ):
        return 0 if Benchmark(options, Path(work), log).run() else 1


if __name__ == "__main__":
    raise SystemExit(main())
