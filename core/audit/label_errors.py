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
from threadpoolctl import threadpool_limits

from torchyard.core.audit.fingerprints import small_pictures
from torchyard.core.data.dataset import PreparedDataset, rows_of
from torchyard.core.data.splitting import stratified_fold

Ints = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating[Any]]

FOLDS = 5
BY = "nearest neighbours"
# Of the simple classifier on unseen samples. What a worse one doubts is mostly its own mistake.
LEAST_ACCURACY = 0.9
COMPONENTS = 64
FITTED = 4608  # samples from which these are found, and that are tried first
TRIED, LEAST_TRIED = 512, 0.7  # of them are asked about; below that accuracy it is the last try
MOST_KNOWN, LEAST_OF_CLASS = 20_000, 50  # samples among which neighbours are looked for
MOST_PROBABILITIES = 1 << 26  # samples times classes
BLOCK = 256  # samples that are read at once


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
    if count * len(prepared.classes) > MOST_PROBABILITIES:
        return LabelErrors.none(
            f"not looked for: {count:,} samples of {len(prepared.classes):,} classes are too many; "
            "--run has a trained network judge them"
        )
    chosen = np.random.default_rng(0).permutation(count)[:FITTED]
    samples = _samples(prepared, chosen)
    if count > FITTED and (right := _tried(samples, labels[chosen])) < LEAST_TRIED:
        return LabelErrors.none(_unbelieved(_how(BY, right)))
    components = _Components.of(samples, images=prepared.dtype == "uint8")
    blocks = np.split(np.arange(count), range(BLOCK, count, BLOCK))
    features = np.concatenate([components(_samples(prepared, each)) for each in blocks])
    probabilities = np.zeros((count, len(prepared.classes)), np.float32)
    for fold in range(FOLDS):
        rest, part = stratified_fold(labels, FOLDS, fold, seed=0, groups=train.groups)
        known = _known(rest, labels)
        probabilities[part] = _neighbours(features, labels, known, part, len(prepared.classes))
        on_progress(fold + 1, FOLDS)
    return judged(probabilities, labels, BY, LEAST_ACCURACY)


def judged(probabilities: Probabilities, labels: Ints, by: str, least: float) -> LabelErrors:
    """The labels that such probabilities doubt, if they are right often enough.

    Args:
        probabilities: N x K, of a classifier that has not seen the samples.
        labels: N class indices.
        by: what classified, in words.
        least: the accuracy from which on it is believed.
    """
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    how = _how(by, accuracy)
    if accuracy < least:
        return LabelErrors.none(_unbelieved(how, least))
    found = confident_errors(probabilities, labels)
    fits = probabilities[found].argmax(axis=1)
    return LabelErrors(found, labels[found], fits, probabilities[found, fits], how)


def _tried(samples: npt.NDArray[np.float32], labels: Ints) -> float:
    """How many of some samples have the label of their nearest neighbour among the others."""
    scaled = samples / np.maximum(samples.std(axis=0), 1e-6 + samples.std() / 100)
    asked, known = scaled[:TRIED], scaled[TRIED:]
    with threadpool_limits(1, "blas"):
        nearness = asked @ known.T - np.einsum("nd,nd->n", known, known) / 2
    return float((labels[TRIED:][nearness.argmax(axis=1)] == labels[:TRIED]).mean())


def _how(by: str, accuracy: float) -> str:
    return f"by {by}, right on {accuracy:.1%} of samples that they had not seen"


def _unbelieved(how: str, least: float = LEAST_ACCURACY) -> str:
    return f"not said: {how}, and that is too few ({least:.0%})"


def _samples(prepared: PreparedDataset, chosen: Ints) -> npt.NDArray[np.float32]:
    """N x D: training samples; of images small pictures."""
    rows = rows_of(prepared.train.samples)
    if prepared.dtype != "uint8":
        return np.asarray(rows[chosen], np.float32).reshape(len(chosen), -1)
    parts = (rows[chosen[start : start + BLOCK]] for start in range(0, len(chosen), BLOCK))
    return np.concatenate([small_pictures(part).reshape(len(part), -1) for part in parts])


@dataclass(frozen=True)
class _Components:
    """The principal components of samples; vectors and signals are standardized first.

    Attributes:
        mean, vectors: float32 D, and D x components.
    """

    mean: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]

    @classmethod
    def of(cls, samples: npt.NDArray[np.float32], images: bool) -> _Components:
        """Of N x D."""
        from sklearn.decomposition import PCA

        mean, size = samples.mean(axis=0), samples.shape[1]
        scale = np.ones(size) if images else 1 / np.maximum(samples.std(axis=0), 1e-6)
        components = min(COMPONENTS, size, len(samples))
        vectors: npt.NDArray[Any] = np.eye(size)
        if components < size:
            solver = PCA(components, svd_solver="randomized", random_state=0)
            vectors = solver.fit((samples - mean) * scale).components_.T
        return cls(mean, np.asarray(scale[:, None] * vectors, np.float32))

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """N x components."""
        return np.asarray((samples - self.mean) @ self.vectors, np.float32)


def _known(chosen: Ints, labels: Ints) -> Ints:
    """At most some thousand of the samples, of each class its share and some at least."""
    mixed = np.random.default_rng(0).permutation(chosen)
    mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    counts = np.bincount(labels[mixed])
    rank = np.arange(len(mixed)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = np.maximum(LEAST_OF_CLASS, np.ceil(counts * (MOST_KNOWN / len(mixed))))
    return np.sort(mixed[rank < most[labels[mixed]]])


def _neighbours(
    features: npt.NDArray[np.float32], labels: Ints, known: Ints, asked: Ints, classes: int
) -> Probabilities:
    """M x K: the shares of the classes among the ten nearest, nearer ones counting more."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(10, len(known)), weights="distance")
    neighbours.fit(features[known], labels[known])
    found = np.zeros((len(asked), classes))
    found[:, neighbours.classes_] = neighbours.predict_proba(features[asked])
    return found
