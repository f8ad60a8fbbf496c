"""The samples that an audit leaves out of training, and what it says about a test's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from torchyard.core.audit.findings import AUDIT_FILE, Audit
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import atomic_write
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError

EXCLUDED_FILE = "excluded.npy"  # in the folder of a run


def found_audit(prepared: PreparedDataset) -> Audit:
    """The audit of a data set that was audited.

    Raises:
        RunError: it was not, or its table is gone.
    """
    found = Audit.read(prepared.folder / AUDIT_FILE)
    if found is None or found.digest != prepared.digest:
        raise RunError(f"There is no audit of the prepared data in {prepared.folder}: run again.")
    return found


def excluded_samples(
    prepared: PreparedDataset, folder: Path | None = None
) -> npt.NDArray[np.int64]:
    """The training samples to leave out: those that another split has, exactly or nearly.

    Args:
        folder: of a run; what it excluded once it excludes when it is resumed, whatever another
            machine's arithmetic would find.

    Raises:
        RunError: there is no audit, or the file of the run is damaged or cannot be written.
    """
    file = None if folder is None else folder / EXCLUDED_FILE
    try:
        if file is not None and file.is_file():
            return np.asarray(np.load(file, allow_pickle=False), np.int64)
        excluded = found_audit(prepared).leaked_samples("train")
        if file is not None:
            with atomic_write(file) as writer:
                np.save(writer, excluded, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{file}: what is left out of training is not known: {error}") from error
    return excluded


def audit_figures(
    audit: Audit, predictions: Predictions, counts: dict[str, int], excluded: bool
) -> dict[str, float]:
    """The figures of a test split that was audited.

    Args:
        audit: of the data set.
        predictions: of its test split.
        counts: samples of each split.
        excluded: whether the leaked samples were left out of training.
    """
    leaked = np.zeros(len(predictions.targets), bool)
    leaked[audit.leaked_samples("test")] = True
    right = predictions.predicted == predictions.targets
    figures = {"leaked": 0.0 if excluded else float(leaked.mean())}
    if not leaked.all():
        figures["accuracy_without_leaked"] = float(right[~leaked].mean())
    if audit.facts["labels_judged"]:
        figures["label_errors"] = audit.count("label error") / counts["train"]
    return figures
