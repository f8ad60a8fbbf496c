"""The findings of an audit as an HTML page, with the images that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchyard.core.audit.findings import KINDS, Audit, Finding
from torchyard.core.formatting import dimensions
from torchyard.core.report.drawing.image_grids import drawable
from torchyard.core.report.page import MAX_EXACT_SIDE, image_uri, render

if TYPE_CHECKING:
    from torchyard.core.data.dataset import PreparedDataset, Split

MOST_SHOWN = 24  # of a kind
PAIRS = ("exact duplicate", "near duplicate", "label conflict")
SINGLE = ("label error", "no content")


def audit_page(audit: Audit, prepared: PreparedDataset, name: str) -> str:
    """Make the page: HTML that needs no other file.

    Args:
        audit: of the data set.
        prepared: its samples; only those shown are read.
        name: of the data set.
    """
    splits = prepared.splits
    pictures = drawable(prepared.train.samples)
    sections = []
    for kind, meaning in KINDS.items():
        found = [each for each in audit.findings if each.kind == kind]
        if not found:
            continue
        shown = _across_first(found)[:MOST_SHOWN]
        sections.append(
            {
                "kind": kind,
                "meaning": meaning,
                "count": len(found),
                "across": sum(_crosses(each) for each in found) if kind in PAIRS else 0,
                "form": "pairs" if kind in PAIRS else "single" if kind in SINGLE else "table",
                "shown": [_shown(each, splits, pictures) for each in shown],
            }
        )
    tests = prepared.counts.get("test", 0)
    unsought = ["label error"] * (not audit.facts["labels_judged"])
    unsought += ["near duplicate"] * (not pictures)
    return render(
        "audit.html",
        title=f"Audit of {name}",
        name=name,
        leaked=len(audit.leaked.get("test", [])),
        tests=tests,
        from_training=len(audit.leaked.get("train", [])),
        origin=[
            prepared.samples,
            dimensions(prepared.shape),
            f"{len(prepared.classes):,} classes",
            f"digest {prepared.digest[:16]}",
        ],
        near_duplicates=audit.facts["near_duplicates"],
        labels=audit.facts["labels"],
        sections=sections,
        absent=[
            meaning
            for kind, meaning in KINDS.items()
            if not audit.count(kind) and kind not in unsought
        ],
        pictures=pictures,
        smooth=pictures and max(prepared.shape[1:]) > MAX_EXACT_SIDE,
    )


def _crosses(finding: Finding) -> bool:
    """Whether the two samples are in different splits."""
    return finding.other_split != "" and finding.split != finding.other_split


def _across_first(findings: list[Finding]) -> list[Finding]:
    """What leaks from one split to another comes first; else the order stays."""
    return sorted(findings, key=lambda each: not _crosses(each))


def _shown(finding: Finding, splits: Mapping[str, Split], pictures: bool) -> dict[str, Any]:
    """A finding as the template needs it: its fields, and the pictures of its samples."""

    def picture(split: str, index: int) -> str | None:
        if not pictures or index < 0:
            return None
        return image_uri(splits[split].samples[index])

    return {
        **vars(finding),
        "picture": picture(finding.split, finding.index),
        "other_picture": picture(finding.other_split, finding.other_index),
        "crosses": _crosses(finding),
    }
