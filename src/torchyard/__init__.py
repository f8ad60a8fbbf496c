"""torchyard: the public names that a plugin needs.

    from torchyard import ModelParams, hookimpl

`core`, `pipelines` and `plugins` in this folder are links to the three folders at the top.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import (
    ArraySplit,
    EncodedSplit,
    RawData,
    SampleSpec,
    SampleSplit,
)
from torchyard.core.data.splitting import stratified_fold, stratified_split
from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.hosting.hookspecs import Register, hookimpl
from torchyard.core.hosting.params import (
    Augmentation,
    AugmentationParams,
    DatasetParams,
    Gate,
    GateParams,
    Loss,
    LossParams,
    Metric,
    MetricParams,
    Mixing,
    MixingParams,
    ModelParams,
    OptimizerParams,
    Pretrained,
    RegionParams,
    SchedulerParams,
    Verdict,
)

if TYPE_CHECKING:
    from torchyard.core.data.predictions import Predictions, PredictionTable
    from torchyard.core.evaluation.confidence import calibration
    from torchyard.core.evaluation.figures import top_share
    from torchyard.core.evaluation.metrics import Evaluation, evaluate
    from torchyard.core.evaluation.paired_test import Comparison, compare

__all__ = [
    "ArraySplit",
    "Augmentation",
    "AugmentationParams",
    "Comparison",
    "DatasetParams",
    "EncodedSplit",
    "Evaluation",
    "Gate",
    "GateParams",
    "Loss",
    "LossParams",
    "Metric",
    "MetricParams",
    "Mixing",
    "MixingParams",
    "ModelParams",
    "OptimizerParams",
    "PredictionTable",
    "Predictions",
    "PreparedDataset",
    "Pretrained",
    "RawData",
    "RegionParams",
    "Register",
    "SampleSpec",
    "SampleSplit",
    "SchedulerParams",
    "UnreachableError",
    "UserError",
    "Verdict",
    "calibration",
    "compare",
    "evaluate",
    "hookimpl",
    "stratified_fold",
    "stratified_split",
    "top_share",
]

# Imported on first use: they import numpy, which most commands do without.
_LAZY = {
    "Comparison": "torchyard.core.evaluation.paired_test",
    "Evaluation": "torchyard.core.evaluation.metrics",
    "PredictionTable": "torchyard.core.data.predictions",
    "Predictions": "torchyard.core.data.predictions",
    "calibration": "torchyard.core.evaluation.confidence",
    "compare": "torchyard.core.evaluation.paired_test",
    "evaluate": "torchyard.core.evaluation.metrics",
    "top_share": "torchyard.core.evaluation.figures",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'torchyard' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
