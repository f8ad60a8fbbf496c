"""A network as a pt2 archive, which anyone can load."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError
from torchyard.core.training.network.network import weights_digest


class NotExportableError(RunError):
    """A network whose computation torch.export cannot write down."""


def export(network: nn.Module, data: PreparedDataset, path: Path) -> str:
    """Write the network as a pt2 archive that takes any number of raw samples.

    Args:
        network: on the CPU.

    Returns:
        The `weights_digest` by name of the network that is loaded from it.

    Raises:
        NotExportableError: torch.export cannot trace the model.
    """
    # Two rows: torch.export takes a dimension of 1 for a constant.
    samples = torch.zeros(2, *data.shape, dtype=getattr(torch, data.dtype))
    program = traced(network, samples)
    with atomic_write(path) as file:
        torch.export.save(program, file)
    return weights_digest(program.module(), by_name=True)


def traced(network: nn.Module, samples: torch.Tensor) -> torch.export.ExportedProgram:
    """The network's evaluation for any number of raw samples, as torch.export writes it down.

    https://docs.pytorch.org/docs/stable/export.html

    Args:
        samples: two or more, on the network's device.

    Raises:
        NotExportableError: torch.export cannot trace the model.
    """
    network = copy.deepcopy(network).eval()
    try:
        return torch.export.export(
            network, (samples,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:
        raise NotExportableError(
            f"The model cannot be exported by torch.export: {str(error).partition(chr(10))[0]}",
            details=str(error),
        ) from error
