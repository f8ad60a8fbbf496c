"""Gates judge in the worker process: one that ends its process, or never answers, refuses."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchyard.core.data.predictions import PredictionTable
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import GateParams, Verdict
from torchyard.core.tracking.registry import champions
from torchyard.core.training.events import Emit, StageProgress
from torchyard.pipelines.worker.process import shared_worker


def judge_in_worker(seconds: float) -> champions.Judge:
    """Have gates judge in the worker process, each for so many seconds at most."""

    def ask(
        name: str,
        gate: GateParams,
        candidate: PredictionTable,
        champion: PredictionTable | None,
        asked: int,
    ) -> Verdict:
        worker, late = shared_worker(), RunError(f"it has not judged within {seconds:g} seconds")
        limit = threading.Timer(seconds, worker.abort, [late])
        with tempfile.TemporaryDirectory() as scratch:
            files: dict[str, Any] = {}
            for role, table in (("candidate", candidate), ("champion", champion)):
                files[role] = str(Path(scratch, role)) if table else None
                if table is not None:
                    table.write(Path(scratch, role))
            files |= {"name": name, "params": gate.model_dump(mode="json"), "asked": asked}
            try:
                # The first event says that it begins: a worker may have to start before.
                return Verdict(**worker.call("judge", lambda event: limit.start(), **files))
            except (RunError, UserError) as error:
                return Verdict(False, f"it could not judge: {error}")
            finally:
                limit.cancel()

    return ask


def judge(
    name: str,
    params: Mapping[str, Any],
    candidate: str,
    champion: str | None,
    asked: int,
    emit: Emit,
) -> dict[str, Any]:
    """The verdict of a gate on two files of predictions, as plain values."""
    emit(StageProgress("judging", 0, 1))
    own = PredictionTable.read(Path(candidate))
    rival = PredictionTable.read(Path(champion)) if champion else None
    gate: Any = host().find("gate", name).params(**params)
    return asdict(champions.judge(name, gate, own, rival, asked))
