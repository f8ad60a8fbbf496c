"""What `model.weights` names: published weights, a file, or what a run of ours has learned."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

SUFFIXES = (".pth", ".pt", ".pt2", ".safetensors", ".bin", ".ckpt")
_OF_A_RUN = re.compile(r"[0-9a-f]{32}|latest|best|champion|.*[@#·: ].*")


class WeightsSource(Enum):
    """Where weights come from."""

    PUBLISHED = "published"
    FILE = "file"
    RECORDED = "recorded"

    @classmethod
    def of(cls, weights: str) -> WeightsSource:
        """Known by the text alone, so that nobody needs to ask torchvision or MLflow.

        A file has a suffix of weights or a slash. A run's id or name, `MODEL@ALIAS` and
        `models:/MODEL/3` are recorded: names that torchyard gives to runs have a `#`.
        """
        if weights.startswith("models:/"):
            return cls.RECORDED
        if weights.endswith(SUFFIXES) or "/" in weights or weights.startswith("~"):
            return cls.FILE
        return cls.RECORDED if _OF_A_RUN.fullmatch(weights) else cls.PUBLISHED


def about_file(weights: Path) -> Path:
    """What is known of a file with a run's weights, as JSON: its `name`, and its `classes`."""
    return weights.with_name("about.json")


def weights_path(weights: str) -> Path:
    """The file that is named."""
    return Path(weights).expanduser()
