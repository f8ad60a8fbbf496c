"""`torchyard.compare`: of runs, or of the tables of predictions that gates are given.

Gates import it, so it imports nothing that they do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.evaluation.paired_test import Comparison
    from torchyard.pipelines.python.run_result import RunResult


def compare(
    first: PredictionTable | RunResult | str,
    second: PredictionTable | RunResult | str,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two runs on the test samples that both have predicted.

        torchyard.compare("champion", run).overall.difference

    Args:
        first, second: runs, as `run` and `load` return them or as `load` takes them; or their
            predictions, as gates are given them.
        confidence: of the intervals; `torchyard.core.evaluation.paired_test.compare` says how it
            compares.

    Raises:
        UserError: the runs were tested on different samples, their classes differ, or one has
            no predictions.
    """
    from torchyard.core.evaluation import paired_test

    tables = [_table(each) for each in (first, second)]
    return paired_test.compare(*tables, confidence=confidence)


def _table(run: PredictionTable | RunResult | str) -> PredictionTable:
    from torchyard.core.data.predictions import PredictionTable

    if isinstance(run, PredictionTable):
        return run
    if isinstance(run, str):
        from torchyard.pipelines.python.run_result import RunResult

        run = RunResult.find(run)
    return run.prediction_table
