"""Choosing a device, and describing it."""

from __future__ import annotations

import os
import platform
import resource
import sys

import psutil
import torch

from torchyard.core.errors import UserError


def choose_device(device: str) -> torch.device:
    """Turn the setting into a torch device; "auto" takes a GPU where there is one.

    Raises:
        UserError: torch cannot use that device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device: torch {torch.__version__} finds no '{device}' here")
        return torch.device("cuda", chosen.index or 0)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: torch finds no 'mps' here")
    return chosen


def set_deterministic(wanted: bool) -> None:
    """Have torch compute the same bits in every run; an operation that cannot then raises.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if wanted:
        # cuBLAS reads this when it is first used, and torch refuses its products without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
        torch.use_deterministic_algorithms(wanted)


def describe_device(device: torch.device) -> dict[str, str]:
    """Name the device and the software on it, for the record."""
    name = _processor_name()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": str(device),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "torch_version": str(torch.__version__),
        "python_version": platform.python_version(),
        "host_memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
    }


def _processor_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:  # noqa: PTH123
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, and of torch on its GPU, in MiB."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if device.type == "cuda":
        peaks["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peaks


def fits_on(size: int, device: torch.device) -> bool:
    """Whether a data set of `size` bytes may stay on the device beside the training.

    On a GPU it may take half of the free memory; in main memory it is mapped, whatever its
    size.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free // 2
