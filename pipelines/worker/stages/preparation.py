"""The stages that make a prepared data set and audit it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torchyard.core.audit import audit
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.core.training.events import Emit, StageProgress
from torchyard.pipelines.worker.checks.config_check import Config, misfits


def prepare(config: Config, cache: str, emit: Emit) -> dict[str, Any]:
    """Find or make the prepared arrays, and audit them where the configuration asks for it.

    Returns:
        folder: where they are; found: whether they were there already.

    Raises:
        UserError: the data are wrong, or lack a validation split that is needed.
    """
    resolved = resolve_once(config, host())
    chosen, folder = resolved.config.dataset, Path(cache)
    before = find_prepared(chosen.name, resolved.dataset, folder, chosen.reading)
    prepared = prepare_dataset(
        chosen.name,
        resolved.dataset,
        folder,
        lambda *step: emit(StageProgress(*step)),
        chosen.reading,
    )
    resolved.config.check_validation(prepared.validation is not None)
    if problems := misfits(resolved, prepared):
        raise UserError(problems)
    if resolved.audited:
        audit.audit(prepared, lambda *step: emit(StageProgress(*step)))
    return {"folder": str(prepared.folder), "found": prepared == before}


def audit_dataset(data: str, again: bool, emit: Emit) -> dict[str, Any]:
    """Audit prepared data; the table is `AUDIT_FILE` in their folder.

    Args:
        again: also where there is a table.

    Returns:
        seconds: how long it took.
    """
    began = time.perf_counter()
    prepared = PreparedDataset.open(Path(data))
    audit.audit(prepared, lambda *step: emit(StageProgress(*step)), again)
    return {"seconds": time.perf_counter() - began}
