"""Which samples are for training, validation and testing: by a column, by time, or drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from torchyard import DatasetParams, UserError, stratified_fold, stratified_split
from torchyard.plugins.datasets.sources.layout import OTHERS, TRAIN, part_named

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]

NAMED = 10  # names in a message; the rest are counted


class HeldOut(DatasetParams):
    """Settings of the samples that are held out for testing where the source does not say."""

    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class for testing, if there is no test part"
    )
    seed: int = Field(0, ge=0, description="seed of the random choice of test samples")
    folds: int | None = Field(
        None,
        ge=2,
        description="divide the samples into so many parts, for cross-validation, and test with "
        "the part `fold`; none: with a fraction",
    )
    fold: int | None = Field(None, ge=0, description="which of them, counted from 0")

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> Self:
        if self.folds is None and self.fold is not None:
            raise ValueError("fold is one of folds: set dataset.folds, e.g. 5")
        if self.folds is not None and (self.fold is None or self.fold >= self.folds):
            raise ValueError(f"fold must be one of the folds, 0 to {self.folds - 1}")
        return self

    def drawn(
        self, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.object_] | None = None
    ) -> tuple[Indices, Indices]:
        """Indices of the training and the test samples: each class in proportion, groups whole.

        Raises:
            UserError: there are too few of them.
        """
        try:
            if self.folds is None or self.fold is None:
                return stratified_split(labels, self.test_fraction, self.seed, groups)
            return stratified_fold(labels, self.folds, self.fold, self.seed, groups)
        except ValueError as error:
            raise UserError(str(error)) from None

    def refuse_folds(self, why: str) -> None:
        """Refuse `folds` where the test part is not drawn.

        Raises:
            UserError: there are some.
        """
        if self.folds is not None:
            raise UserError(f"dataset.folds draws the test part, but {why}")


def parts_of(values: Iterable[str], column: str) -> tuple[dict[str, Indices], list[str]]:
    """The rows of each part that a column names, and what was assumed.

    Args:
        values: of the column, stripped; "" where one is missing.
        column: its name, for messages.

    Returns:
        Indices by "train", "validation" and "test", as far as they are there, and notes.

    Raises:
        UserError: a value names no part, or there is none for training.
    """
    import numpy as np

    every = [*values]
    names = {value: part_named(value) for value in sorted({*every})}
    if unknown := [value for value, part in names.items() if part is None]:
        counts = Counter(every)
        named = listed(f"{value!r} ({counts[value]:,} rows)" for value in unknown)
        raise UserError(
            f"dataset.split: the column '{column}' has values that name no part: {named}; "
            "they are train, validation and test, or other usual names of these"
        )
    found = np.array([names[value] for value in every])
    parts = {part: np.flatnonzero(found == part) for part in (TRAIN, *OTHERS)}
    others = [part for part in OTHERS if len(parts[part])]
    if not len(parts[TRAIN]):
        raise UserError(f"dataset.split: the column '{column}' names no row for training")
    if len(others) > 2:
        raise UserError(
            f"dataset.split: the column '{column}' names {', '.join(others)}: there can be a "
            "validation and a test part, not three"
        )
    roles, notes = {TRAIN: parts[TRAIN]}, []
    if others:
        roles["test"] = parts[others[-1]]
        if others[-1] != "test":
            notes.append(f"the {others[-1]} rows are the test part, because there is no other")
    if len(others) == 2:
        roles["validation"] = parts[others[0]]
    return roles, notes


def newest(
    times: npt.NDArray[np.float64],
    fraction: float,
    groups: npt.NDArray[np.object_] | None = None,
) -> tuple[Indices, Indices]:
    """Indices of the older samples and of the newest.

    Those of one moment stay together, and so do those of one group, which is as new as its newest
    sample. There are at least as many new ones as `fraction` says.

    Raises:
        UserError: all samples are of one moment.
    """
    import numpy as np

    if groups is not None:
        _, codes = np.unique(groups, return_inverse=True)
        latest = np.full(codes.max() + 1, -np.inf)
        np.maximum.at(latest, codes, times)
        times = latest[codes]
    moments = np.unique(times)
    if len(moments) == 1:
        raise UserError("dataset.time: all samples, or groups, are of one moment: none is newer")
    count = max(1, round(len(times) * fraction))
    bound = max(np.sort(times)[-count], moments[1])  # something is left to train on
    return np.flatnonzero(times < bound), np.flatnonzero(times >= bound)


def listed(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" … and {len(every) - NAMED:,} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
