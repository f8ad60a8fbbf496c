"""A run that trains on where a finished one ended: what it needs of that, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import flattened
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.core.tracking.queries.runs import EXACT, SEEDS
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import get_run, open_store, run_folder, tracking_uri
from torchyard.pipelines.flow.stage import call, plain, say

if TYPE_CHECKING:
    from mlflow.entities import Run


# Settings on which the weights do not depend, and the length, which is what an extension changes.
WITHOUT_EFFECT = (
    *("train.epochs", "train.max_steps", "train.skip_repeats", "train.log_every"),
    *("train.log_gradients", "dataset.verify", "promote", "plugins"),
)
SOFTWARE = ("device", "device_name", "torch_version")


@dataclass(frozen=True)
class FinishedRun:
    """The run that is extended.

    Attributes:
        run: as MLflow has it.
        config: its configuration.
        folder: with its last checkpoint.
    """

    run: Run
    config: dict[str, Any]
    folder: Path

    @classmethod
    def find(cls, parent: str | None) -> FinishedRun | None:
        """The parent of a run; None where it has none, or is one of several seeds.

        Raises:
            RunError: the store is out of reach.
        """
        if parent is None:
            return None
        client = open_store(uri := tracking_uri())
        with store_errors(uri):
            run = get_run(client, parent)
            if SEEDS in run.data.tags:
                return None
            return cls(run, recorded_config(client, run), run_folder(uri, run))

    def begin(self, record: RunRecord, config: RunConfig, data: Path) -> None:
        """Give a run the last checkpoint, unless it is resumed; say if that equals one long run.

        Args:
            record, config, data: of the run that extends this one.
        """
        if (record.folder / LAST).exists():
            return
        folders: dict[str, Any] = {
            "data": str(data),
            "source": str(self.folder),
            "folder": str(record.folder),
        }
        settings = plain(config)
        done = call("extend", record.run_id, config=settings, before=self.config, **folders)
        reasons = self._reasons(settings, data, done)
        begins = f"from epoch {done['epochs'] + 1}, where {self.run.info.run_name} ended"
        one = f"as one run of {config.train.epochs} epochs"
        if reasons:
            say("extend", f"{begins}; not {one}: {'; '.join(reasons)}")
        else:
            say("extend", f"{begins}: {one}, with the same weights, bit for bit")
        record.set_tags({EXACT: "; ".join(reasons) or "true"})

    def _reasons(self, config: dict[str, Any], data: Path, done: dict[str, Any]) -> list[str]:
        """Why the weights will not be those of one long run; empty if they will."""
        tags, digest = self.run.data.tags, PreparedDataset.open(data).digest
        inputs = self.run.inputs.dataset_inputs if self.run.inputs else []
        reasons = [
            *_differences(self.config, config),
            *done["reasons"],
            *(
                f"{key} is {done['placement'][key]} and was {tags[key]}"
                for key in SOFTWARE
                if tags.get(key, done["placement"][key]) != done["placement"][key]
            ),
        ]
        if inputs and not any(digest.startswith(each.dataset.digest) for each in inputs):
            reasons.append("the data set has changed")
        return reasons


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = dict(flattened(before)), dict(flattened(now))
    for key in sorted(old.keys() | new.keys()):
        effect = not any(key == each or key.startswith(f"{each}.") for each in WITHOUT_EFFECT)
        if effect and old.get(key) != new.get(key):
            yield f"{key} is {new.get(key, 'not set')} and was {old.get(key, 'not set')}"
