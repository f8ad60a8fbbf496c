"""What a run says of itself that whoever trains it again can compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.config.resolve import resolve
from torchyard.core.config.weights import WeightsSource
from torchyard.core.errors import UserError
from torchyard.core.formatting import natural
from torchyard.core.hosting.host import host
from torchyard.core.hosting.neighbours import neighbours, read_code
from torchyard.core.hosting.sources import Source
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.core.tracking.queries.runs import DIGEST, EXACT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CURVE = "train/loss"  # by which it is seen in which epoch two trainings part
# Tags of a run that say where and how it was computed.
PLACEMENT = (
    *("device", "device_name", "threads", "torch_version", "python_version", "precision"),
    *("execution", "processes", "batch_size", "model_device", "data_device"),
)


@dataclass(frozen=True)
class Claim:
    """A run's record, as far as its weights follow from it.

    Attributes:
        name: of the run.
        config: with every default filled in.
        weights: sha256 of them.
        data: the digest of the data set, or its beginning.
        environment: where and how it was computed, by the names in `PLACEMENT`.
        epochs: the training loss after each, whose number is a text, as in JSON.
        packages: the versions of the installed distributions by name, where they are known.
        plugins: the plugin files, and what they import from their folders: bytes by "0/name.py",
            a number for each folder.
        extends: why it is not as one training, if it went on from a finished run's weights.
    """

    name: str
    config: dict[str, Any]
    weights: str
    data: str
    environment: Mapping[str, str] = field(default_factory=dict)
    epochs: Mapping[str, float] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, bytes] = field(default_factory=dict)
    extends: str = ""

    @classmethod
    def of_run(cls, client: MlflowClient, run: Run) -> Claim:
        """What the store has of a run.

        Raises:
            UserError: it has no weights or no configuration.
        """
        tags, name = run.data.tags, str(run.info.run_name)
        if DIGEST not in tags:
            raise UserError(f"run {name} is {run.info.status} and has no weights.")
        config = recorded_config(client, run)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        history = client.get_metric_history(run.info.run_id, CURVE)
        return cls(
            name,
            config,
            tags[DIGEST],
            inputs[0].dataset.digest if inputs else "",
            {key: tags[key] for key in PLACEMENT if key in tags},
            {str(each.step): each.value for each in history},
            extends="" if tags.get(EXACT, "true") == "true" else tags[EXACT],
        )

    def settled(self) -> dict[str, Any]:
        """The configuration, with the number of threads that trained it: it is not this machine's.

        What the model's promotion needs is left out: another machine may lack its gates.
        """
        config = {**self.config, "promote": None}
        threads = natural(self.environment.get("threads", ""))
        if config["train"].get("threads") is None and threads is not None:
            config["train"] = {**config["train"], "threads": threads}
        return config


def portable(claim: Claim) -> Claim:
    """The same with what another machine needs: its plugin files, and the packages here.

    Raises:
        UserError: with all that it needs and cannot be carried, or is not what the run had.
    """
    resolved = resolve({**claim.config, "promote": None}, host())
    problems = [f"{change}: that is not what it was trained with" for change in resolved.changed]
    named = resolved.weights
    if named is not None and WeightsSource.of(named) is WeightsSource.RECORDED:
        problems.append(f"model.weights: {named} is a run or model of this store, which stays here")
    if claim.extends:
        problems.append(f"it trained a finished run on, and not as one run: {claim.extends}")
    torch, now = claim.environment.get("torch_version", ""), version("torch")
    if torch and torch.partition("+")[0] != now.partition("+")[0]:
        problems.append(f"torch {now} is installed, and it was trained with {torch}")
    if problems:
        raise UserError(f"{claim.name} cannot be bundled: {problem}" for problem in problems)
    files: dict[str, bytes] = {}
    folders: list[Path] = []
    for found in resolved.plugins.values():
        if (file := _own_file(found.source)) is None:
            continue
        if file.parent not in folders:
            folders.append(file.parent)
        top = folders.index(file.parent)
        for each in (file, *neighbours(file)):
            files[f"{top}/{each.relative_to(file.parent).as_posix()}"] = read_code(each)
    config = resolved.config.model_dump(mode="json")
    return replace(claim, config=config, packages=installed(), plugins=files)


def _own_file(source: Source) -> Path | None:
    """The file of a plugin that no distribution has."""
    return source.source_file if source.identity.startswith("sha256:") else None


def installed() -> dict[str, str]:
    """The versions of the installed distributions, by name."""
    found = {each.metadata["Name"].lower(): each.version for each in distributions()}
    return dict(sorted(found.items()))
