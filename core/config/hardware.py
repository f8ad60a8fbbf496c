"""Whether a device may exist on this machine, without importing torch: `check` answers at once."""

from __future__ import annotations

import ctypes
import sys

from torchyard.core.formatting import natural

_CUDA_ERROR_NO_DEVICE = 100


def device_problem(device: str) -> str | None:
    """Say why a device is certainly missing on this machine.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        The reason; None where the device may exist, which torch decides later.
    """
    if device == "mps" and sys.platform != "darwin":
        return "this machine has no Apple GPU (accepts: auto, cpu, cuda, cuda:N, mps)"
    if not device.startswith("cuda"):
        return None
    count = _cuda_devices()
    if count == 0:
        return "this machine has no CUDA GPU (device=cpu and device=auto run here)"
    index = device.partition(":")[2] or "0"
    if count is not None and (natural(index) or 0) >= count:
        return f"this machine has {count} CUDA GPU(s), numbered from 0"
    return None


def _cuda_devices() -> int | None:
    """Ask the CUDA driver how many GPUs there are; None where it does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return 0 if status == _CUDA_ERROR_NO_DEVICE else None
    return count.value
