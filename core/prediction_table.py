"""The predictions of a run's test split as a Parquet file, for anything that is asked later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import RunError
from core.evaluation import Predictions
from core.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd

    from core.dataset import PreparedDataset

FILE = "predictions.parquet"  # the run's artifact


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Predictions, and what is needed to understand them without the data set.

    In the file a row is a test sample, in the order of the split, with the columns

    - index: its place in the split, from 0;
    - true, predicted: names of classes, categories in the order of the class indices;
    - probabilities: float32, one a class, in the same order; they sum to one;
    - logits: float32, one a class, before the softmax.

    The attributes below are in the file's metadata, which pandas gives back as
    `pandas.read_parquet(file).attrs`.

    Attributes:
        predictions: of the N samples.
        run: the name of the run they are from.
        dataset: the name of the data set.
        classes: the names, in the order of the class indices.
        test_digest: sha256 of the test split: equal only where the samples are the same.
    """

    predictions: Predictions
    run: str
    dataset: str
    classes: tuple[str, ...]
    test_digest: str

    @classmethod
    def of(cls, predictions: Predictions, run: str, prepared: PreparedDataset) -> PredictionTable:
        """The predictions of a prepared data set's test split."""
        return cls(predictions, run, prepared.name, prepared.classes, prepared.test_digest)

    def frame(self) -> pd.DataFrame:
        """The table as it is in the file."""
        import pandas as pd

        made = self.predictions
        table = pd.DataFrame(index=pd.Index(np.arange(len(made.targets)), name="index"))
        names = pd.Index(self.classes, dtype=str)
        for column, indices in (("true", made.targets), ("predicted", made.predicted)):
            table[column] = pd.Categorical.from_codes(indices, names)
        table["probabilities"] = list(made.probabilities)
        table["logits"] = list(made.logits)
        table.attrs = {
            "run": self.run,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "test_digest": self.test_digest,
        }
        return table

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; RunError if the disk does not take it."""
        try:
            with whole_file(path) as file:
                self.frame().to_parquet(file, index=True)
        except OSError as error:
            raise RunError(f"The predictions cannot be written to {path}: {error}") from error

    @classmethod
    def read(cls, path: Path) -> PredictionTable:
        """Read what `write` wrote, executing nothing; RunError if it is missing or damaged."""
        import pandas as pd

        try:
            table = pd.read_parquet(path, columns=["true", "logits"])
            about = table.attrs
            classes = tuple(about["classes"])
            width = len(classes)
            logits = np.concatenate([np.empty(0, np.float32), *table["logits"]])
            targets = pd.Categorical(table["true"], categories=list(classes)).codes
            predictions = Predictions(logits.reshape(-1, width), targets.astype(np.int64))
            return cls(predictions, about["run"], about["dataset"], classes, about["test_digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are among these
            raise RunError(f"{path} holds no predictions of torchyard: {error}") from error
