"""Labels that are likely wrong, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70 (2021), https://arxiv.org/abs/1911.00068.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchyard.core.audit.fingerprints import small_pictures
from torchyard.core.data.dataset import PreparedDataset, rows_of
from torchyard.core.data.splitting import stratified_fold

Ints = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating[Any]]

FOLDS = 5
# Of the simple classifier on unseen samples. What a worse one doubts is mostly its own mistake.
LEAST_ACCURACY = 0.9
MOST_SAMPLES = 20_000  # for the simple classifier
MOST_BYTES = 1 << 30  # of vectors and signals, which are read whole
COMPONENTS = 64
BLOCK = 256  # images that are read at once


@dataclass(frozen=True)
class LabelErrors:
    """Samples of the training split whose label is likely wrong, the surest first.

    Attributes:
        indices: of the samples.
        labels, fits: class indices: the given, and the one that fits.
        probability: of the class that fits.
        how: in words, what judged them, or why nothing did.
        judged: whether anything did.
    """

    indices: Ints
    labels: Ints
    fits: Ints
    probability: Probabilities
    how: str
    judged: bool = True

    def rows(self) -> Iterator[tuple[int, int, int, float]]:
        """Index, label, class that fits and its probability, of each."""
        columns = self.indices, self.labels, self.fits, self.probability
        yield from zip(*(column.tolist() for column in columns), strict=True)

    @classmethod
    def none(cls, how: str) -> LabelErrors:
        """None were looked for."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, empty.astype(np.float64), how, judged=False)


def confident_errors(probabilities: Probabilities, labels: Ints) -> Ints:
    """Indices of the labels that are likely wrong, the surest first.

    The confident joint counts each sample under its label and the most probable of those classes
    of which it has at least the mean probability that samples of the class have (the paper's
    equations 1 and 2). Its off-diagonal share of each pair of classes says how many labels to
    doubt, and those with the greatest margin to the given label are (prune by noise rate).

    Args:
        probabilities: N x K, of each class, by a classifier that has not seen the sample.
        labels: N class indices.
    """
    count, classes = probabilities.shape
    given = probabilities[np.arange(count), labels]
    totals = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=given, minlength=classes)
    thresholds = np.where(totals > 0, sums / np.maximum(totals, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = confident.argmax(axis=1)
    counted = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[counted], best[counted]), 1)
    # Calibrated, so that the rows sum to the numbers of labels (equation 3).
    rows = joint.sum(axis=1, keepdims=True)
    joint = np.where(rows > 0, joint * totals[:, None] / np.maximum(rows, 1), 0)
    doubted = np.zeros(count, bool)
    for label, fit in zip(*np.nonzero(np.rint(joint)), strict=True):
        if label == fit:
            continue
        members = np.flatnonzero(labels == label)
        margin = probabilities[members, fit] - given[members]
        surest = members[np.argsort(-margin, kind="stable")[: int(np.rint(joint[label, fit]))]]
        doubted[surest] = True
    # Only where another class is the most probable one at all.
    doubted &= probabilities.argmax(axis=1) != labels
    found = np.flatnonzero(doubted)
    margin = probabilities[found].max(axis=1) - given[found]
    return np.asarray(found[np.argsort(-margin, kind="stable")], np.int64)


def label_errors(
    prepared: PreparedDataset, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> LabelErrors:
    """Doubt labels of the training split, by a simple classifier on samples it has not seen."""
    train = prepared.train
    labels, count = train.labels, len(train.labels)
    kinds, sizes = np.unique(labels, return_counts=True)
    if prepared.dtype == "int64":
        return LabelErrors.none("of token ids: not looked for")
    if len(kinds) < 2 or sizes.min() < FOLDS:
        return LabelErrors.none(
            f"not looked for: a class has fewer than {FOLDS} training samples, or is the only one"
        )
    if count > MOST_SAMPLES:
        return LabelErrors.none(
            f"not looked for: {count:,} training samples are more than {MOST_SAMPLES:,}, which is "
            "what the simple classifier takes; --run has a trained network judge them"
        )
    if prepared.dtype != "uint8" and train.samples.nbytes > MOST_BYTES:
        return LabelErrors.none("not looked for: the training samples are more than 1 GiB")
    features = _features(prepared)
    probabilities = np.zeros((count, len(prepared.classes)))
    for fold in range(FOLDS):
        rest, part = stratified_fold(labels, FOLDS, fold, seed=0, groups=train.groups)
        probabilities[part] = _neighbour_probabilities(
            features[rest], labels[rest], features[part], len(prepared.classes)
        )
        on_progress(fold + 1, FOLDS)
    return judged(probabilities, labels, "nearest neighbours", LEAST_ACCURACY)


def judged(probabilities: Probabilities, labels: Ints, by: str, least: float) -> LabelErrors:
    """The labels that such probabilities doubt, if they are right often enough.

    Args:
        probabilities: N x K, of a classifier that has not seen the samples.
        labels: N class indices.
        by: what classified, in words.
        least: the accuracy from which on it is believed.
    """
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    how = f"by {by}, right on {accuracy:.1%} of samples that they had not seen"
    if accuracy < least:
        return LabelErrors.none(f"not said: {how}, and that is too few ({least:.0%})")
    found = confident_errors(probabilities, labels)
    fits = probabilities[found].argmax(axis=1)
    return LabelErrors(found, labels[found], fits, probabilities[found, fits], how)


def _features(prepared: PreparedDataset) -> npt.NDArray[np.float32]:
    """N x D: the principal components of the training samples.

    Those of images are of small pictures; vectors and signals are standardized first.
    """
    from sklearn.decomposition import PCA

    rows, count = rows_of(prepared.train.samples), len(prepared.train.labels)
    if prepared.dtype == "uint8":
        parts = (rows[start : start + BLOCK] for start in range(0, count, BLOCK))
        flat = np.concatenate([small_pictures(part).reshape(len(part), -1) for part in parts])
    else:
        flat = np.asarray(rows[:], np.float32).reshape(count, -1)
        flat = (flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-6)
    components = min(COMPONENTS, flat.shape[1], count)
    if components == flat.shape[1]:
        return flat
    solver = PCA(components, svd_solver="randomized", random_state=0)
    return np.asarray(solver.fit_transform(flat), np.float32)


def _neighbour_probabilities(
    known: npt.NDArray[np.float32], labels: Ints, asked: npt.NDArray[np.float32], classes: int
) -> Probabilities:
    """M x K: the shares of the classes among the ten nearest, nearer ones counting more."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(10, len(known)), weights="distance").fit(known, labels)
    found = np.zeros((len(asked), classes))
    found[:, neighbours.classes_] = neighbours.predict_proba(asked)
    return found
