"""torchyard: the public names that a plugin needs, and those that a program or notebook calls.

    from torchyard import ModelParams, hookimpl

    import torchyard
    run = torchyard.run("digits", "optimizer.lr=0.01")

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
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.splitting import stratified_fold, stratified_split
from torchyard.core.errors import RunError, UnreachableError, UserError
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
    from torchyard.core.evaluation.paired_test import Comparison
    from torchyard.pipelines.python.calls import load, resume, run, runs
    from torchyard.pipelines.python.comparison import compare
    from torchyard.pipelines.python.model import Model
    from torchyard.pipelines.python.run_result import RunResult
    from torchyard.pipelines.study.calls import sweep

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
    "Model",
    "ModelParams",
    "OptimizerParams",
    "PredictionTable",
    "Predictions",
    "PreparedDataset",
    "Pretrained",
    "RawData",
    "RegionParams",
    "Register",
    "RemoteAddress",
    "RunError",
    "RunResult",
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
    "load",
    "resume",
    "run",
    "runs",
    "stratified_fold",
    "stratified_split",
    "sweep",
    "top_share",
]

# Imported on first use: they import numpy and more, which most commands do without.
_LAZY = {
    "Comparison": "torchyard.core.evaluation.paired_test",
    "Evaluation": "torchyard.core.evaluation.metrics",
    "PredictionTable": "torchyard.core.data.predictions",
    "Predictions": "torchyard.core.data.predictions",
    "Model": "torchyard.pipelines.python.model",
    "RunResult": "torchyard.pipelines.python.run_result",
    "calibration": "torchyard.core.evaluation.confidence",
    "compare": "torchyard.pipelines.python.comparison",
    "evaluate": "torchyard.core.evaluation.metrics",
    "sweep": "torchyard.pipelines.study.calls",
    "load": "torchyard.pipelines.python.calls",
    "resume": "torchyard.pipelines.python.calls",
    "run": "torchyard.pipelines.python.calls",
    "runs": "torchyard.pipelines.python.calls",
    "top_share": "torchyard.core.evaluation.figures",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'torchyard' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
