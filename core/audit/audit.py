"""The audit of a prepared data set: duplicates, leaks, doubtful labels, unlike splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torchyard.core.audit.distribution import class_shares, classes_alike, shared_groups
from torchyard.core.audit.findings import AUDIT_FILE, KINDS, Audit, Finding
from torchyard.core.audit.fingerprints import NOISE, Fingerprints, fingerprints
from torchyard.core.audit.label_errors import LabelErrors, label_errors
from torchyard.core.audit.near_duplicates import Pairs, near_duplicates
from torchyard.core.data.dataset import PreparedDataset, Split

Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]


def audit(prepared: PreparedDataset, on_progress: Progress, again: bool = False) -> Audit:
    """Audit a data set, or read how it was audited before; the table is kept beside its arrays.

    Args:
        on_progress: called with what is done, samples done and all samples.
        again: also where there is a table.

    Raises:
        RunError: the prepared data are damaged, or the table cannot be written.
        OSError: they cannot be read.
    """
    file = prepared.folder / AUDIT_FILE
    found = None if again else Audit.read(file)
    if found is None or found.digest != prepared.digest:
        found = _audit(prepared, on_progress)
        found.write(file)
    return found


def with_label_errors(audit: Audit, doubted: LabelErrors, classes: Sequence[str]) -> Audit:
    """An audit whose wrong labels are those that another classifier doubts."""
    kept = [each for each in audit.findings if each.kind != "label error"]
    facts = audit.facts | {"labels": doubted.how, "labels_judged": doubted.judged}
    findings = _sorted([*kept, *_label_findings(doubted, classes)])
    return replace(audit, findings=findings, facts=facts)


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    order = list(KINDS)
    return sorted(findings, key=lambda each: (order.index(each.kind), -each.score))


def _audit(prepared: PreparedDataset, on_progress: Progress) -> Audit:
    splits, classes = prepared.splits, prepared.classes
    seconds, began = {}, time.perf_counter()
    prints = fingerprints(
        list(splits.values()), lambda *step: on_progress("reading", *step), prepared.folder
    )
    places = _Places(splits, classes)
    groups = _Exact(prints)
    pairs = near_duplicates(
        prints, groups.first, lambda *step: on_progress("comparing", *step)
    ) if prints.embedding.shape[1] else None  # fmt: skip
    seconds["duplicates"] = time.perf_counter() - began
    duplicates = [*_exact_findings(groups, places), *_near_findings(pairs, places)]
    conflicts = [
        Finding(**{**vars(each), "kind": "label conflict"})
        for each in duplicates
        if each.label != each.other
    ]
    began = time.perf_counter()
    doubted = label_errors(prepared, lambda *step: on_progress("labels", *step))
    seconds["labels"] = time.perf_counter() - began
    counts = dict(zip(classes, np.bincount(places.labels, minlength=len(classes)), strict=True))
    findings = [
        *duplicates,
        *conflicts,
        *_label_findings(doubted, classes),
        *_empty(prints, places),
        *class_shares(splits, classes),
        *shared_groups(splits),
        *classes_alike(conflicts, counts),
    ]
    facts: dict[str, Any] = {
        "samples": len(places.labels),
        "near_duplicates": "compared" if pairs is not None else "of images only: not looked for",
        "labels": doubted.how,
        "labels_judged": doubted.judged,
        "seconds": seconds,
    }
    return Audit(_sorted(findings), _leaked(groups, pairs, places), facts, prepared.digest)


class _Places:
    """Where each of all samples is: its split, its index there, and its label."""

    def __init__(self, splits: Mapping[str, Split], classes: Sequence[str]) -> None:
        self.names, self.classes = list(splits), classes
        sizes = [len(split.labels) for split in splits.values()]
        self.split = np.repeat(np.arange(len(sizes)), sizes)
        self.index = np.concatenate([np.arange(size) for size in sizes])
        self.labels = np.concatenate([split.labels for split in splits.values()])

    def finding(self, kind: str, one: int, other: int = -1, **rest: Any) -> Finding:
        """A finding about a sample, or two."""
        if other >= 0:
            rest |= {
                "other_split": self.names[self.split[other]],
                "other_index": int(self.index[other]),
                "other": self.classes[self.labels[other]],
            }
        split, index = self.names[self.split[one]], int(self.index[one])
        return Finding(kind, split, index, label=self.classes[self.labels[one]], **rest)


class _Exact:
    """Samples of the same values.

    Attributes:
        first: the first sample of each different content, ascending.
        of: for each sample the number of its content, a place in `first`.
    """

    def __init__(self, prints: Fingerprints) -> None:
        _, first, inverse = np.unique(prints.digests, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty(len(first), np.int64)
        number[order] = np.arange(len(first))
        self.first: Ints = first[order]
        self.of: Ints = number[inverse.reshape(-1)]


def _exact_findings(groups: _Exact, places: _Places) -> Iterator[Finding]:
    """Each sample whose content has been there before, beside the first that has it."""
    first = groups.first[groups.of]
    for one in np.flatnonzero(first != np.arange(len(first))):
        yield places.finding("exact duplicate", int(first[one]), int(one))


def _near_findings(pairs: Pairs | None, places: _Places) -> Iterator[Finding]:
    if pairs is None:
        return
    columns = pairs.first, pairs.second, pairs.correlation, pairs.mirrored
    for one, other, score, mirrored in zip(*(c.tolist() for c in columns), strict=True):
        note = "mirrored" if mirrored else ""
        yield places.finding("near duplicate", one, other, score=min(1.0, score), note=note)


def _label_findings(doubted: LabelErrors, classes: Sequence[str]) -> Iterator[Finding]:
    for index, label, fits, probability in doubted.rows():
        given, other = classes[label], classes[fits]
        yield Finding("label error", "train", index, label=given, other=other, score=probability)


def _empty(prints: Fingerprints, places: _Places) -> Iterator[Finding]:
    limit = NOISE if prints.embedding.shape[1] else np.finfo(np.float32).tiny
    for one in np.flatnonzero(prints.deviation < limit).tolist():
        note = f"standard deviation {prints.deviation[one]:.2g}"
        yield places.finding("no content", one, note=note)


def _leaked(groups: _Exact, pairs: Pairs | None, places: _Places) -> dict[str, list[int]]:
    """By split, the samples that are, exactly or nearly, in another one.

    Of the training split those that any other has, of another those that the training split has:
    two evaluation splits that share samples leak nothing into the training.
    """
    if "train" not in places.names or len(places.names) == 1:
        return {}
    training = places.split == places.names.index("train")
    count = len(groups.first)
    has_training = np.bincount(groups.of[training], minlength=count) > 0
    has_other = np.bincount(groups.of[~training], minlength=count) > 0
    near_training, near_other = has_training.copy(), has_other.copy()
    if pairs is not None and len(pairs):
        one, other = groups.of[pairs.first], groups.of[pairs.second]
        for target, source in ((near_training, has_training), (near_other, has_other)):
            target[one[source[other]]] = True
            target[other[source[one]]] = True
    leaks = np.where(training, near_other[groups.of], near_training[groups.of])
    return {
        name: places.index[leaks & (places.split == number)].tolist()
        for number, name in enumerate(places.names)
    }
