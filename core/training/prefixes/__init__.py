"""Epochs that several trainings have in common, trained once."""

from torchyard.core.training.prefixes.replay import ScheduleReplay
from torchyard.core.training.prefixes.snapshots import SharedEpochs, Snapshots, replayed

__all__ = ["ScheduleReplay", "SharedEpochs", "Snapshots", "replayed"]
