"""torchyard's host: the public names a plugin needs.

from core import ModelParams, hookimpl
"""

from core.dataset import (
    ArraySplit,
    EncodedSplit,
    PreparedDataset,
    RawData,
    SampleSpec,
    SampleSplit,
    stratified_split,
)
from core.errors import UnreachableError, UserError
from core.gates import Verdict
from core.hookspecs import Register, hookimpl
from core.parameters import (
    Augmentation,
    AugmentationParams,
    DatasetParams,
    Gate,
    GateParams,
    LossParams,
    ModelParams,
    OptimizerParams,
    SchedulerParams,
)

__all__ = [
    "ArraySplit",
    "Augmentation",
    "AugmentationParams",
    "DatasetParams",
    "EncodedSplit",
    "Gate",
    "GateParams",
    "LossParams",
    "ModelParams",
    "OptimizerParams",
    "PreparedDataset",
    "RawData",
    "Register",
    "SampleSpec",
    "SampleSplit",
    "SchedulerParams",
    "UnreachableError",
    "UserError",
    "Verdict",
    "hookimpl",
    "stratified_split",
]
