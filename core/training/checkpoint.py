"""Checkpoints: written whole or not at all, exact, and read without pickle."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError

LAST = "last.pt"
BEST = "best.pt"


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state of tensors and plain values; a reader finds the old or the new file.

    Raises:
        RunError: the disk does not take it.
    """
    try:
        with atomic_write(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # torch raises its own error in place of the system's.
                if shutil.disk_usage(path.parent).free < 2**16:
                    raise OSError("no space left on the disk") from error
                raise
    except (OSError, RuntimeError) as error:
        raise RunError(f"The checkpoint {path} cannot be written: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a state to the CPU; only tensors and plain values are accepted (`weights_only`).

    `load_state_dict` moves each tensor to where it belongs. Loaded to a GPU, the step counts
    of Adam would stay there, and be waited for at every step.

    Raises:
        RunError: the file is missing, damaged, or holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"The checkpoint {path} cannot be read: {reason}") from error
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator a training on that device may draw from."""
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = legacy
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["device"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every generator back to where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
    elif device.type == "mps" and "device" in state:
        torch.mps.set_rng_state(state["device"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def seed_everything(seed: int) -> None:
    """Seed every generator a training may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
