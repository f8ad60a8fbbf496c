"""What a gate says of a model that would become the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """A gate's judgement.

    Attributes:
        passed: whether the model may become the champion, as far as this gate goes.
        reason: one clause with the figures it rests on, "96.9 % of 359 is at least 90 %".
        figures: those figures by name, for machines.
    """

    passed: bool
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
