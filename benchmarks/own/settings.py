"""The configuration that the scripts of this folder share with `torchyard run`."""

from __future__ import annotations

from typing import Any

from torchyard.pipelines.commands.arguments import preset_config


def configuration(preset: str, overrides: list[str]) -> dict[str, Any]:
    """What `torchyard run PRESET OVERRIDES…` sends its worker."""
    return preset_config(preset, overrides).config.model_dump(mode="json")


def nothing(event: object) -> None:
    """Tell nobody."""
