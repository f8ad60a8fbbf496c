"""Checkpoints: written whole or not at all, exact, read without pickle, and never if damaged.

Where a flipped bit, a bad sector or a power cut spoiled the last one, training goes on from the
one before it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from torchyard.core.data.checkpoint_file import DAMAGED, LAST, PREVIOUS, DigestedFile, damage
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError

logger = logging.getLogger(__name__)


def save(state: dict[str, Any], path: Path, step: int | None = None) -> None:
    """Write a state of tensors and plain values; a reader finds the old or the new file.

    Args:
        state: of `torch.save`.
        path: of the file.
        step: how many training steps come before it, for readers without torch.

    Raises:
        RunError: the disk does not take it, or it holds anything else.
    """
    try:
        with atomic_write(path) as file:
            digested = DigestedFile(file)
            try:
                torch.save(state, digested)  # type: ignore[arg-type]
            except RuntimeError as error:
                # torch raises its own error in place of the system's.
                if shutil.disk_usage(path.parent).free < 2**16:
                    raise OSError("no space left on the disk") from error
                raise
            except (AttributeError, TypeError, pickle.PicklingError) as error:
                raise RuntimeError(_unfit(state)) from error
            file.flush()
            if get_unsafe_globals_in_checkpoint(file.name):  # `load` would refuse them
                raise RuntimeError(_unfit(state))
            digested.end(step)
    except (OSError, RuntimeError) as error:
        raise RunError(f"The checkpoint {path} cannot be written: {error}") from error


def _unfit(state: dict[str, Any]) -> str:
    """Which part of a state holds what is no tensor and no plain value, and what that is."""
    found = []
    for name, part in state.items():
        buffer = io.BytesIO()
        try:
            torch.save(part, buffer)
            buffer.seek(0)
            held = ", ".join(get_unsafe_globals_in_checkpoint(buffer))
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            held = str(error)
        if held:
            found.append(f"the state of the {name} is not of tensors and plain values ({held})")
    return "; ".join(found)


def save_beside(state: dict[str, Any], path: Path, step: int | None = None) -> None:
    """`save` a state in place of the one at `path`, which stays beside it as PREVIOUS."""
    new = path.with_name(f".{path.name}")
    save(state, new, step)
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_name(PREVIOUS))
    new.replace(path)


def find(folder: Path) -> Path | None:
    """The folder's last checkpoint, or the one before it where that is damaged.

    One that is damaged is set aside, and a warning says so. None: training begins anew.
    """
    damaged = False
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            with path.open("rb") as file:
                problem = damage(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
        if not problem:
            if damaged:
                logger.warning("Training goes on from the checkpoint before it, %s.", path.name)
            return path
        damaged = True
        logger.warning("The checkpoint %s is damaged: %s.", path, problem)
        with contextlib.suppress(OSError):
            path.replace(folder / DAMAGED)
    if damaged:
        logger.warning("There is no other checkpoint: training begins anew.")
    return None


def load(path: Path) -> dict[str, Any]:
    """Read a state to the CPU; only tensors and plain values are accepted (`weights_only`).

    `load_state_dict` moves each tensor to where it belongs. Loaded to a GPU, the step counts
    of Adam would stay there, and be waited for at every step.

    Raises:
        RunError: the file is missing, damaged, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            if problem := damage(file):
                raise RunError(problem)
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
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
