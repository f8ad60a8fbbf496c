"""One section in a process of its own: a crash of the GPU's driver, or a hang, ends it alone."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.report import Report

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "accelerate",
    "pytorch-lightning",
    "pydantic",
)


def facts(device: torch.device) -> dict[str, Any]:
    """The machine and what runs on it."""
    found: dict[str, Any] = {
        "device": str(device),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "packages": {},
    }
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name"))
        found["processor"] = model.partition(":")[2].strip()
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["packages"][package] = importlib.metadata.version(package)
    found["commit"] = _printed("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": card.name,
            "gpu_memory_gib": round(card.total_memory / 2**30),
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "nvidia_smi": _printed(
                "nvidia-smi",
                "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu,power.limit",
                "--format=csv,noheader",
            ),
        }
    return found


def _printed(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Run the function MODULE:FUNCTION; its figures go to WORK/NAME.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.section", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--airbench", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    report = Report(options.work / f"{options.name}.json")
    with report.attempt():  # what escapes the section's own attempts
        device = torch.device(options.device)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        if options.name == "prepare":
            report.add(facts(device), "facts")
        job = Job(
            device=device,
            source=options.data,
            work=options.work,
            report=report,
            ends=ends,
            tiny=options.tiny,
            others=tuple(options.airbench),
        )
        module, function = options.function.split(":")
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(job)
    raise SystemExit(1 if "error" in report.figures else 0)


if __name__ == "__main__":
    main()
