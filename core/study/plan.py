"""What a study is: the settings of its trials, its search space, and how that is searched.

Everything that is wrong with it is reported at once, before any trial begins: the corners of the
space are resolved as a run's configuration is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from torchyard.core.config.messages import explain
from torchyard.core.config.parsing import read_overridden, with_values
from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.config.schema import LOWER_IS_BETTER, SINGLE_KINDS, STANDARD_FIGURES
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.host import Host
from torchyard.core.study.space import (
    ACCEPTED,
    Domain,
    Range,
    SearchSpace,
    as_override,
    parse_domain,
)

# By which trials compare; `metrics` add some.
FIGURES = (*(f"val/{name}" for name in STANDARD_FIGURES), "train/loss", "train/accuracy")
HELD_OUT = 0.1  # share of the training split, where the settings name none
TRIALS = 20
MOST_POINTS = 1000  # of a space whose trials share what they have in common
EXTRAS = {"dask": "prefect_dask", "ray": "prefect_ray", "cmaes": "cmaes"}  # and what they install
SECTIONS = {"space", "fixed", "study"}  # of a file, beside the settings of a run


class StudySettings(BaseModel):
    """How a study searches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, description="of the study", min_length=1, max_length=100)
    trials: PositiveInt | None = Field(
        None, description=f"how many; none: {TRIALS}, or all of a grid"
    )
    sampler: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "none"
    workers: PositiveInt = Field(1, description="trials at a time")
    engine: Literal["local", "pool", "dask", "ray"] = Field(
        "local", description="what spreads the trials"
    )
    address: str | None = Field(
        None, description="of a Dask scheduler or a Ray cluster; the name of a work pool"
    )
    minimize: str | None = Field(None, description="figure of an epoch; none: train.monitor's")
    maximize: str | None = Field(None, description="figure of an epoch")

    @field_validator("name")
    @classmethod
    def _visible(cls, value: str | None) -> str | None:
        if value is not None and not (value.isprintable() and value.strip()):
            raise ValueError(f"a study's name has no invisible characters: {value!r}")
        return value

    @model_validator(mode="after")
    def _one_goal(self) -> StudySettings:
        if self.minimize and self.maximize:
            raise ValueError("minimize and maximize: a study has one of them")
        return self

    @property
    def missing_extra(self) -> str | None:
        """The extra of torchyard that the study needs and is not installed."""
        used = {self.engine, self.sampler} & EXTRAS.keys()
        return next((extra for extra in sorted(used) if not _installed(extra)), None)

    @property
    def figure(self) -> str:
        """By which trials are compared, in the epoch whose weights are kept."""
        return self.maximize or self.minimize or "val/loss"


@dataclass(frozen=True)
class StudyPlan:
    """A study as it is asked for.

    Attributes:
        base: the settings of a preset or a file.
        fixed: settings that take the place of those, in every trial, by their keys.
        space: what differs.
        settings: how it is searched.
        notes: what was filled in and may not be expected.
    """

    base: Mapping[str, Any]
    fixed: Mapping[str, Any]
    space: SearchSpace
    settings: StudySettings
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        source: str | Mapping[str, Any],
        assignments: Sequence[str | Mapping[str, Any]],
        options: Mapping[str, Any],
        presets: Path,
        host: Host,
    ) -> StudyPlan:
        """Read a study and check all of it.

        Args:
            source: a preset, a YAML file, or what is in one: the settings of a run, and beside
                them `space` (setting: domain), `fixed` (setting: value) and `study`.
            assignments: "key=value" or "key=domain", or mappings from keys to these.
            options: of the study's settings; they take the place of those in the file.
            presets: their folder.

        Raises:
            UserError: with everything that is wrong.
        """
        problems: list[str] = []
        if isinstance(source, str):
            base, _ = read_overridden(source, (), presets)
        else:
            base = dict(source)
        sections = {name: base.pop(name, None) or {} for name in SECTIONS}
        for name, section in sections.items():
            if not isinstance(section, Mapping):
                problems.append(f"{name}: must be a section of settings")
                sections[name] = {}
        domains: dict[str, Domain] = {}
        fixed: dict[str, Any] = dict(sections["fixed"])
        given = [(str(key), value, True) for key, value in sections["space"].items()]
        for assignment in assignments:
            if isinstance(assignment, Mapping):
                given += [(str(key), value, False) for key, value in assignment.items()]
                continue
            key, separator, value = assignment.partition("=")
            if not separator or not all(part.isidentifier() for part in key.split(".")):
                problems.append(
                    f"'{assignment}' is not of the form key=value, e.g. optimizer.lr=log(1e-4,1e-1)"
                )
                continue
            given.append((key, value, False))
        for key, value, needed in given:
            try:
                domain = parse_domain(key, value)
                if domain is None and needed:
                    problems.append(f"space: {key}: {value!r} is no domain  (accepts: {ACCEPTED})")
                elif key in domains or key in fixed:
                    problems.append(f"{key}: is set twice, one time to {value}")
                elif domain is None:
                    fixed[key] = value
                else:
                    domains[key] = domain
            except UserError as error:
                domains.pop(key, None)
                problems += error.problems
        settings = StudySettings()
        try:
            given_options = {key: value for key, value in options.items() if value is not None}
            settings = StudySettings.model_validate({**sections["study"], **given_options})
        except ValidationError as error:
            problems += explain(error, StudySettings, "study")
        if not domains and not problems:
            problems.append(f"a study needs a setting that differs  (accepts: {ACCEPTED})")
        plan = cls(base, fixed, SearchSpace(domains), settings)
        problems += plan._problems(host)
        if problems:
            raise UserError(problems)
        return plan._filled_in(host)

    def resolved(self, values: Mapping[str, Any], host: Host) -> ResolvedConfig:
        """The configuration of a trial with these values of the space.

        Raises:
            UserError: with everything that is wrong with it.
        """
        settings, problems = with_values(self.base, {**self.fixed, **values})
        if problems:
            raise UserError(problems)
        return resolve(settings, host)

    @property
    def document(self) -> dict[str, Any]:
        """The study as a file that `read` takes has it."""
        study = self.settings.model_dump(mode="json", exclude_none=True)
        own = {"space": self.space.texts(), "fixed": dict(self.fixed), "study": study}
        return {**self.base, **{name: section for name, section in own.items() if section}}

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the trials' values and results depend on."""
        depends = self.document
        depends["study"] = {
            key: value
            for key, value in depends["study"].items()
            if key not in ("name", "trials", "workers", "engine", "address")
        }
        text = json.dumps(depends, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of the study; without one of its own, the same for the same study."""
        return self.settings.name or f"study-{self.digest[:8]}"

    @property
    def trials(self) -> int:
        """How many trials it has when it is done: those of a grid are not more than its points."""
        if self.settings.sampler != "grid":
            return self.settings.trials or TRIALS
        points = 1
        for domain in self.space.domains.values():
            points *= len(domain.grid or ())
        return min(points, self.settings.trials or points)

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """All values that trials can have, where some may begin alike; [] of too many."""
        alike = any(
            key.partition(".")[0] == "scheduler" or key == "train.epochs"
            for key in self.space.domains
        )
        grids = [domain.grid for domain in self.space.domains.values()]
        count = math.prod(len(grid or ()) for grid in grids)
        if not alike or not 0 < count <= MOST_POINTS:
            return []
        labels = itertools.product(*(grid or () for grid in grids))
        return [
            self.space.values(dict(zip(self.space.domains, each, strict=True))) for each in labels
        ]

    def command(self, values: Mapping[str, Any], source: str) -> list[str]:
        """The words of the command that runs a trial by itself: `torchyard run …`.

        Args:
            values: of the space, in that trial.
            source: the preset or file that the study began with.
        """
        chosen = {**self.fixed, **values}
        return ["torchyard", "run", source, *(as_override(*each) for each in chosen.items())]

    def combinations(self) -> list[dict[str, Any]]:
        """One corner for each combination of plugins in the space."""
        found: dict[str, dict[str, Any]] = {}
        for corner in self.space.corners():
            chosen = [corner[key] for key in corner if _names_plugin(key)]
            found.setdefault(json.dumps(chosen), corner)
        return list(found.values())

    def _problems(self, host: Host) -> Iterable[str]:
        """What is wrong with the settings at the corners of the space, each with where."""
        for key, domain in self.space.domains.items():
            if self.settings.sampler == "grid" and domain.grid is None:
                yield f"{key}: {domain}: a grid needs a list of choices, or int(low,high)"
        settings = self.settings
        if settings.engine == "local" and settings.address is not None:
            yield "study.address: is for the engines pool, dask and ray"
        if extra := settings.missing_extra:
            setting = "sampler" if extra == settings.sampler else "engine"
            yield f"study.{setting}: {extra} needs an extra: pip install 'torchyard[{extra}]'"
        if settings.sampler == "cmaes" and not any(
            isinstance(domain, Range) for domain in self.space.domains.values()
        ):
            yield "study.sampler: cmaes searches numbers, and no setting is a range of them"
        corners = list(self.space.corners())
        found: dict[str, list[dict[str, Any]]] = {}
        pruned = self.settings.pruner != "none"
        for corner in corners:
            try:
                config = self.resolved(corner, host).config
                if pruned and config.train.parallel == "ddp":
                    problem = "study.pruner: is for trials of one process: leave train.parallel"
                    found.setdefault(problem, []).append(corner)
                if config.train.nodes > 1:
                    problem = "train.nodes: a trial trains on one host: leave train.nodes=1"
                    found.setdefault(problem, []).append(corner)
                known = [*FIGURES, *(f"val/{metric.name}" for metric in config.metrics)]
                figure = self.settings.figure
                if not any(figure == each or figure.startswith(f"{each}/") for each in known):
                    problem = f"study: no figure '{figure}'.{suggestion(figure, known)}"
                    found.setdefault(problem, []).append(corner)
                if config.promote is not None:
                    problem = "promote: trials are not promoted: `torchyard promote` does, later"
                    found.setdefault(problem, []).append(corner)
            except UserError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(corner)
        for problem, where in found.items():
            yield problem + _where(where, corners)

    def _filled_in(self, host: Host) -> StudyPlan:
        """The same study with a validation split and `train.monitor`, by which trials compare."""
        plan, notes, key = self, [], "train.validation"
        first = self.resolved(next(self.space.corners()), host)
        train, settings = first.config.train, self.settings
        if settings.minimize is None and settings.maximize is None and train.monitor != "loss":
            lower = {name for name, metric in first.named_metrics if metric.lower_is_better}
            goal = "minimize" if train.monitor in lower | LOWER_IS_BETTER else "maximize"
            settings = settings.model_copy(update={goal: f"val/{train.monitor}"})
            plan = replace(self, settings=settings)
        by_validation = settings.figure.startswith("val/")
        if by_validation and key not in self.space.domains and not train.validation:
            plan = replace(plan, fixed={**self.fixed, key: HELD_OUT})
            notes.append(
                f"{key}={HELD_OUT}: trials are compared by that share of the training split, never "
                "by the test split"
            )
        cores, workers = os.cpu_count() or 1, self.settings.workers
        # Of a cluster that runs already, the cores are others.
        if workers > cores and self.settings.address is None:
            notes.append(f"{workers} workers on {cores} processors wait for one another")
        return replace(plan, notes=tuple(notes))

    @property
    def most_epochs(self) -> int | None:
        """The upper end of `train.epochs`, where it is in the space."""
        domain = self.space.domains.get("train.epochs")
        if isinstance(domain, Range):
            return int(domain.high)
        return max(int(value) for value in domain.values) if domain else None


def shared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings those that trainings have in common which begin alike.

    Their schedules may be others, which give the same rates up to some epoch.
    """
    train = {key: value for key, value in config["train"].items() if key != "epochs"}
    shared = {key: value for key, value in config.items() if key not in ("scheduler", "train")}
    return {**shared, "train": train}


def has_study(source: str, presets: Path) -> bool:
    """Whether a preset or a file has more than the settings of a run, so that `run` refuses it."""
    base, _ = read_overridden(source, (), presets)
    return bool(SECTIONS & base.keys())


def _installed(extra: str) -> bool:
    return importlib.util.find_spec(EXTRAS[extra]) is not None


def _names_plugin(key: str) -> bool:
    return key in SINGLE_KINDS or key.removesuffix(".name") in SINGLE_KINDS


def _where(corners: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> str:
    """Which corners have a problem, in as few words as say it."""
    if len(corners) == len(every):
        return ""
    for key, value in corners[0].items():
        if all(each[key] == value for each in corners):
            alike = [each for each in every if each[key] == value]
            if len(alike) == len(corners):
                return f"  (with {as_override(key, value)})"
    return f"  (with {' '.join(as_override(*each) for each in corners[0].items())})"
