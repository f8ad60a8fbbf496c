"""The network: what it is made of, what it begins with, what of it learns, how it is exported."""

from torchyard.core.training.network.dry_run import (
    DryRun,
    build_model,
    build_on,
    dry_run,
    refusal,
    without_memory,
)
from torchyard.core.training.network.export import NotExportableError, export, traced
from torchyard.core.training.network.freezing import Freezing, freeze
from torchyard.core.training.network.groups import Group, build_optimizer, parameter_groups
from torchyard.core.training.network.network import (
    Network,
    Normalize,
    check_normalization,
    model_input,
    weights_digest,
)
from torchyard.core.training.network.pretrained import StartingWeights

__all__ = [
    "DryRun",
    "Freezing",
    "Group",
    "Network",
    "Normalize",
    "NotExportableError",
    "StartingWeights",
    "build_model",
    "build_on",
    "build_optimizer",
    "check_normalization",
    "dry_run",
    "export",
    "freeze",
    "model_input",
    "parameter_groups",
    "refusal",
    "traced",
    "weights_digest",
    "without_memory",
]
