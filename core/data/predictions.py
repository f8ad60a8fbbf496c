"""A network's predictions of a test split, and their Parquet file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from torchyard.core.data.files import written
from torchyard.core.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

    from torchyard.core.data.dataset import PreparedDataset


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of a network for N samples, in the order of the split.

    Attributes:
        logits: float32 N x K, before the softmax.
        targets: int64 N, the true class indices.
    """

    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.targets.shape != self.logits.shape[:1]:
            shapes = f"{self.logits.shape} and {self.targets.shape}"
            raise ValueError(f"logits are N x K and targets N, not {shapes}")

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """int64 N: the class with the greatest logit; of equal ones, the first."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """float32 N x K: the softmax of the logits; every row sums to one."""
        exponentials = shifted_exponentials(self.logits)
        exponentials /= exponentials.sum(axis=1, keepdims=True)
        return exponentials

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """float32 N: the probability of the predicted class."""
        return np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)[:, 0]

    def save(self, path: Path) -> None:
        """Write an .npz file atomically; RunError if it cannot be written."""
        with written(path, "The predictions") as file:
            np.savez(file, allow_pickle=False, logits=self.logits, targets=self.targets)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote; RunError if it is missing or damaged. Nothing is unpickled."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["logits"], arrays["targets"])
        # TypeError: a single array, which np.load also reads, is no context manager.
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
            raise RunError(f"{path} holds no predictions: {error}") from error


def shifted_exponentials(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """exp(logits - the maximum of their row), float32 N x K: the softmax before its division.

    Without the subtraction, large logits would overflow.
    """
    shifted: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    return shifted


PREDICTIONS_FILE = "predictions.parquet"  # an artifact of each run


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Predictions, and what is needed to understand them without the data set.

    The Parquet file has one row for each test sample, in the order of the split. Its columns:

    - index: index of the sample in the split, from 0;
    - true, predicted: class names, as categories in the order of the class indices;
    - probabilities: float32, one for each class, in the same order; they sum to one;
    - logits: float32, one for each class, before the softmax.

    The other attributes below are in the file's metadata: `pandas.read_parquet(file).attrs`.

    Attributes:
        predictions: of the N samples.
        run: name of the run.
        dataset: name of the data set.
        classes: class names, in the order of the class indices.
        test_digest: sha256 of the test split, to compare runs on the same samples only.
        figures: of the predictions, by name, as the run recorded them; earlier versions wrote none.
    """

    predictions: Predictions
    run: str
    dataset: str
    classes: tuple[str, ...]
    test_digest: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        run: str,
        prepared: PreparedDataset,
        figures: Mapping[str, float],
    ) -> PredictionTable:
        """The table of a prepared data set's test split."""
        return cls(predictions, run, prepared.name, prepared.classes, prepared.test_digest, figures)

    def frame(self) -> pd.DataFrame:
        """The table as a pandas data frame, as in the file."""
        import pandas as pd

        predictions = self.predictions
        names = pd.Index(self.classes, dtype=str)
        columns = {
            "true": pd.Categorical.from_codes(predictions.targets, names),
            "predicted": pd.Categorical.from_codes(predictions.predicted, names),
            "probabilities": list(predictions.probabilities),
            "logits": list(predictions.logits),
        }
        table = pd.DataFrame(columns, pd.Index(np.arange(len(predictions.targets)), name="index"))
        table.attrs = {
            "run": self.run,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "test_digest": self.test_digest,
            "figures": dict(self.figures),
        }
        return table

    def write(self, path: Path) -> None:
        """Write the Parquet file atomically; RunError if it cannot be written."""
        with written(path, "The predictions") as file:
            self.frame().to_parquet(file, index=True)

    @classmethod
    def read(cls, path: Path) -> PredictionTable:
        """Read what `write` wrote; RunError if it is missing, damaged or another program's."""
        import pandas as pd

        try:
            table = pd.read_parquet(path, columns=["true", "logits"])
            classes = tuple(table.attrs["classes"])
            logits = np.concatenate([np.empty(0, np.float32), *table["logits"]])
            targets = pd.Categorical(table["true"], categories=list(classes)).codes
            predictions = Predictions(logits.reshape(-1, len(classes)), targets.astype(np.int64))
            run, dataset, digest = (table.attrs[key] for key in ("run", "dataset", "test_digest"))
            figures = table.attrs.get("figures", {})
            return cls(predictions, run, dataset, classes, digest, figures)
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are among these
            raise RunError(f"{path} holds no predictions of torchyard: {error}") from error
