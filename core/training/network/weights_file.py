"""Files with weights, read without pickle: what `torch.save` and safetensors write, and pt2."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchyard.core.errors import UserError, nearest_file

PT2_WEIGHTS = "weights/model_weights_config.json"
PT2_TYPES = {5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64}  # by its numbers
Tensors = dict[str, torch.Tensor]

# Where programs keep the state dict of the network among what else they save.
NESTED = ("state_dict", "network", "model", "model_state_dict", "net", "params")


def read_weights(file: Path, source: str) -> Tensors:
    """The tensors of a state dict, by name, on the CPU.

    Args:
        file: .safetensors, .pt2, or what `torch.save` wrote: a state dict alone, or as one value
            of a mapping, under one of `NESTED`.
        source: what messages call it.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        found = _read(file)
    except UserError:
        raise
    except FileNotFoundError:
        hint = nearest_file(file)
        raise UserError(f"model.weights: {source}: there is no such file.{hint}") from None
    except OSError as error:
        raise UserError(f"model.weights: {source}: {error.strerror or error}") from None
    except Exception as error:  # whatever the three formats' readers raise of a foreign file
        text = str(error)
        reason = f"cannot be read: {text.strip().partition(chr(10))[0] or type(error).__name__}"
        if "eights only load failed" in text or "eights_only" in text:
            named = re.search(r"GLOBAL ([\w.]+)", text)
            what = f" ({named[1]})" if named else ""
            reason = (
                f"holds Python objects{what}, not tensors alone: loading it could run code. Save "
                "the state dict of the network, torch.save(network.state_dict(), file)"
            )
        raise UserError(f"model.weights: {source}: {reason}") from error
    tensors = _tensors(found)
    if not tensors:
        raise UserError(f"model.weights: {source}: holds no state dict, a mapping of tensors")
    return tensors


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise UserError(
                "model.weights: a .safetensors file needs the package safetensors: "
                "python -m pip install safetensors"
            ) from None
        return load_file(file)
    if file.suffix == ".pt2":
        return _exported(file)
    # A file that is mapped is read where it is used; one from before torch 1.6 cannot be.
    mapped = zipfile.is_zipfile(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _exported(file: Path) -> Tensors:
    """The weights in a pt2 archive. `torch.export.load` would read pickled ones, too.

    https://docs.pytorch.org/docs/stable/export/pt2_archive.html
    """
    tensors = {}
    with zipfile.ZipFile(file) as archive:
        weights = next(n for n in archive.namelist() if n.endswith(PT2_WEIGHTS))
        for name, entry in json.loads(archive.read(weights))["config"].items():
            meta = entry["tensor_meta"]
            if entry["use_pickle"] or meta["dtype"] not in PT2_TYPES:
                raise ValueError(f"{name} is not stored as plain numbers")
            sizes, strides = ([n["as_int"] for n in meta[key]] for key in ("sizes", "strides"))
            content = bytearray(archive.read(f"{weights.rpartition('/')[0]}/{entry['path_name']}"))
            flat = torch.frombuffer(content, dtype=PT2_TYPES[meta["dtype"]])
            offset = meta["storage_offset"]["as_int"]
            tensors[name] = flat.as_strided(sizes, strides, offset)
    return tensors


def _tensors(found: Any) -> Tensors:
    if not isinstance(found, Mapping):
        return {}
    tensors = {
        name: value.detach()
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        return tensors
    return next((inner for key in NESTED if (inner := _tensors(found.get(key)))), {})
