"""torchyard: the public names that a plugin needs, and those that a program or notebook calls.

    from torchyard import ModelParams, hookimpl

    import torchyard
    run = torchyard.run("digits", "optimizer.lr=0.01")

`core`, `pipelines` and `plugins` in this folder are links to the three folders at the top.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchyard.core.data.dataset import PreparedDataset
    from torchyard.core.data.predictions import Predictions, PredictionTable
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
    from torchyard.core.evaluation.confidence import calibration
    from torchyard.core.evaluation.figures import top_share
    from torchyard.core.evaluation.metrics import Evaluation, evaluate
    from torchyard.core.evaluation.paired_test import Comparison
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

# Where each name is. It is imported on first use: the command line's first line needs none.
_MODULES = {
    "PreparedDataset": "torchyard.core.data.dataset",
    "PredictionTable": "torchyard.core.data.predictions",
    "Predictions": "torchyard.core.data.predictions",
    "ArraySplit": "torchyard.core.data.raw",
    "EncodedSplit": "torchyard.core.data.raw",
    "RawData": "torchyard.core.data.raw",
    "SampleSpec": "torchyard.core.data.raw",
    "SampleSplit": "torchyard.core.data.raw",
    "RemoteAddress": "torchyard.core.data.remote.address",
    "stratified_fold": "torchyard.core.data.splitting",
    "stratified_split": "torchyard.core.data.splitting",
    "RunError": "torchyard.core.errors",
    "UnreachableError": "torchyard.core.errors",
    "UserError": "torchyard.core.errors",
    "calibration": "torchyard.core.evaluation.confidence",
    "top_share": "torchyard.core.evaluation.figures",
    "Evaluation": "torchyard.core.evaluation.metrics",
    "evaluate": "torchyard.core.evaluation.metrics",
    "Comparison": "torchyard.core.evaluation.paired_test",
    "Register": "torchyard.core.hosting.hookspecs",
    "hookimpl": "torchyard.core.hosting.hookspecs",
    "Augmentation": "torchyard.core.hosting.params",
    "AugmentationParams": "torchyard.core.hosting.params",
    "DatasetParams": "torchyard.core.hosting.params",
    "Gate": "torchyard.core.hosting.params",
    "GateParams": "torchyard.core.hosting.params",
    "Loss": "torchyard.core.hosting.params",
    "LossParams": "torchyard.core.hosting.params",
    "Metric": "torchyard.core.hosting.params",
    "MetricParams": "torchyard.core.hosting.params",
    "Mixing": "torchyard.core.hosting.params",
    "MixingParams": "torchyard.core.hosting.params",
    "ModelParams": "torchyard.core.hosting.params",
    "OptimizerParams": "torchyard.core.hosting.params",
    "Pretrained": "torchyard.core.hosting.params",
    "RegionParams": "torchyard.core.hosting.params",
    "SchedulerParams": "torchyard.core.hosting.params",
    "Verdict": "torchyard.core.hosting.params",
    "load": "torchyard.pipelines.python.calls",
    "resume": "torchyard.pipelines.python.calls",
    "run": "torchyard.pipelines.python.calls",
    "runs": "torchyard.pipelines.python.calls",
    "compare": "torchyard.pipelines.python.comparison",
    "Model": "torchyard.pipelines.python.model",
    "RunResult": "torchyard.pipelines.python.run_result",
    "sweep": "torchyard.pipelines.study.calls",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'torchyard' has no attribute '{name}'")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
