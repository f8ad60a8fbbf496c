"""The stages of the worker process: paths and plain values in and out.

STAGES names each function that a parent process may request.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from torchyard.core.training.network.export import traced
from torchyard.pipelines.worker.checks.config_check import check
from torchyard.pipelines.worker.checks.plugin_check import try_plugins
from torchyard.pipelines.worker.judging import judge
from torchyard.pipelines.worker.search.learning_rate import find_learning_rate
from torchyard.pipelines.worker.stages.branching import find_branches
from torchyard.pipelines.worker.stages.evaluation import evaluate, export
from torchyard.pipelines.worker.stages.extension import extend
from torchyard.pipelines.worker.stages.label_judging import judge_labels
from torchyard.pipelines.worker.stages.preparation import audit_dataset, prepare
from torchyard.pipelines.worker.stages.summaries import inspect_dataset, inspect_model
from torchyard.pipelines.worker.stages.training import join, train


@cache
def load_compiler() -> None:
    """Make torch import its compiler, which the first optimizer of a process asks for."""
    torch.optim.SGD([torch.zeros(1)])


@cache
def load_export() -> None:
    """Make torch import what the first export of a process needs."""
    torch.export.save(traced(nn.Linear(1, 1), torch.zeros(2, 1)), io.BytesIO())


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    stage.__name__: stage
    for stage in (
        *(check, try_plugins, prepare, extend, train, evaluate, export, judge),
        *(audit_dataset, judge_labels, inspect_dataset, inspect_model),
        *(find_learning_rate, find_branches, join),
    )
}
