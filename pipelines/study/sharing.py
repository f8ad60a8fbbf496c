"""What the trials of a study have in common, so that it is trained once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchyard.core.config.schema import RunConfig
from torchyard.core.study.plan import StudyPlan, shared_settings
from torchyard.pipelines.worker.process import shared_worker


class SharedTraining:
    """The epochs that trials share, of a study all of whose trials are known before it begins.

    Args:
        plan: the study.
        folder: for the checkpoints at which trials part.
        config_of: the configuration of a trial with values of the space.
    """

    def __init__(
        self, plan: StudyPlan, folder: Path, config_of: Callable[[Mapping[str, Any]], RunConfig]
    ) -> None:
        self.folder = folder
        self._points, self._config_of = plan.points, config_of
        self._families: dict[str, list[dict[str, Any]]] | None = None
        self._epochs: dict[str, dict[str, dict[int, str]]] = {}
        self._finding = threading.Lock()

    def of(self, config: RunConfig, data: str) -> dict[str, Any] | None:
        """What a trial shares with others, for the stage that trains; None: nothing.

        Args:
            config: of the trial.
            data: the folder of its prepared data set.
        """
        train = config.train
        alone = train.parallel == "none" and train.batch_size != "auto"
        if not (self._points and alone):
            return None
        plain = config.model_dump(mode="json")
        family = _text(shared_settings(plain))
        with self._finding:
            if family not in self._epochs:
                self._epochs[family] = self._find(family, data)
        epochs = self._epochs[family].get(_text(plain))
        return {"folder": str(self.folder), "epochs": epochs} if epochs else None

    def _find(self, family: str, data: str) -> dict[str, dict[int, str]]:
        if self._families is None:
            self._families = {}
            for values in self._points:
                plain = self._config_of(values).model_dump(mode="json")
                self._families.setdefault(_text(shared_settings(plain)), []).append(plain)
        members = self._families.get(family, [])
        if len(members) < 2:
            return {}
        done = shared_worker().call("find_branches", configs=members, data=data)
        return dict(zip(map(_text, members), done["epochs"], strict=True))


def _text(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True)
