"""The champion of a registered model: judged, moved, and put back.

The alias `champion` is what others follow. It is moved in one call, after all that can fail, so a
failure leaves the old champion in place. Everything else about a promotion is in tags of the
version, written before; only the tag that marks it as pending is removed afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from torchyard.core.errors import RunError, UserError, suggestion
from torchyard.core.formatting import percent, times
from torchyard.core.hosting.params import GateParams, Verdict
from torchyard.core.redaction import redacted
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.provenance import user_name
from torchyard.core.tracking.queries.lookup import ACCURACY, CHAMPION
from torchyard.core.tracking.queries.recorded import logged_model_id, recorded_predictions
from torchyard.core.tracking.registry.asks import count_ask
from torchyard.core.tracking.registry.versions import (
    AT,
    BY,
    NEVER,
    OUTCOME,
    PENDING,
    REPLACED,
    ROLLED_BACK,
    WHY,
    champion_of,
    number_of,
    statuses,
    versions_of,
)
from torchyard.core.tracking.store import current_store, if_there, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from torchyard.core.data.predictions import PredictionTable

FILE = "promotion.json"  # the run's artifact
SHOWN_WHY = 4000  # MLflow takes 5,000 characters
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Judged:
    """How a promotion ended.

    Attributes:
        model: the registered model's name.
        verdicts: of each gate, by its name, in the order asked for.
        version: the new champion's; None if a gate refused.
        before: the champion's version until then, if there was one.
        asked: how often the test samples were asked for this model, this time included; 0 where
            there was no champion to compare with on them.
    """

    model: str
    verdicts: tuple[tuple[str, Verdict], ...]
    version: int | None
    before: int | None
    asked: int = 0

    @property
    def lines(self) -> list[str]:
        """A line per gate: whether the model passed, and why."""
        said = f"asked    its test samples {times(self.asked)}, this time included"
        return [said] * (self.asked > 0) + [
            f"{'passed ' if verdict.passed else 'refused'}  {name}: {verdict.reason}"
            for name, verdict in self.verdicts
        ]

    @property
    def outcome(self) -> str:
        """One line for people."""
        if self.version is not None:
            place = f", in place of version {self.before}" if self.before is not None else ""
            return f"champion of {self.model}: version {self.version}{place}"
        names = ", ".join(name for name, verdict in self.verdicts if not verdict.passed)
        stays = "there is none" if self.before is None else f"version {self.before} stays"
        return f"not the champion of {self.model} ({stays}): refused by {names}"


def judge(
    name: str,
    gate: GateParams,
    candidate: PredictionTable,
    champion: PredictionTable | None,
    asked: int,
) -> Verdict:
    """The verdict of a gate, in this process; one that cannot judge refuses.

    Args:
        asked: how often the test samples were asked, as `Judged` has it.
    """
    try:
        told = gate.with_ask(asked) if asked else gate
        if not isinstance(told, GateParams):
            raise TypeError(f"'with_ask' returned a {type(told).__name__}")
        verdict = told.build()(candidate, champion)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"it returned a {type(verdict).__name__}, not a Verdict")
        if verdict.passed not in (True, False):
            raise TypeError(f"'passed' of its Verdict is {verdict.passed!r}")
        figures = {str(key): float(value) for key, value in verdict.figures.items()}
        return Verdict(bool(verdict.passed), redacted(str(verdict.reason)), figures)
    except UserError as error:
        return Verdict(False, redacted(str(error)))
    # A plugin may raise anything. KeyboardInterrupt, too: the process where gates judge gets none.
    except BaseException as error:
        return Verdict(False, redacted(f"it could not judge: {type(error).__name__}: {error}"))


Judge = Callable[[str, GateParams, "PredictionTable", "PredictionTable | None", int], Verdict]


def promote(
    client: MlflowClient,
    run: Run,
    model: str,
    gates: Sequence[tuple[str, GateParams]],
    judge: Judge = judge,
    chosen_among: int = 1,
    server: MlflowClient | None = None,
) -> Judged:
    """Make a run's network the champion of a registered model, if every gate lets it.

    The store is locked while the champion changes, not while gates judge, which may take long. One
    that finds that another has changed the champion meanwhile starts again.

    Args:
        client: of the store.
        run: its predictions and its logged model are recorded.
        model: the registered model's name; it is created if it does not exist.
        gates: with the names to show.
        judge: has a gate judge; elsewhere, if it must not be able to end this process.
        chosen_among: of how many runs it was chosen by these very test samples, which have been
            asked as often then.
        server: of a server of the same store, which is told of the new champion, so that its
            webhooks fire; None: the store alone has it.

    Raises:
        UserError: the run or the champion lacks recorded predictions, or the run has no model.
        RunError: the store is out of reach, or champions change faster than they are judged.
    """
    uri = client.tracking_uri
    with store_errors(uri):
        model_id = logged_model_id(run)
        candidate = recorded_predictions(client, run)
        for _ in range(MAX_ATTEMPTS):
            before = champion_of(client, model)
            if before is not None and before.run_id == run.info.run_id:
                # By an attempt that was interrupted before its last step.
                _clear_pending(client, before)
                replaced = before.tags.get(REPLACED)
                return Judged(model, (), int(before.version), int(replaced) if replaced else None)
            rival = _predictions_of(client, before)
            asked = 0
            if before is not None and rival and rival.test_digest == candidate.test_digest:
                asked = count_ask(client, before, run, candidate.test_digest, chosen_among)
            verdicts = tuple(
                (name, judge(name, gate, candidate, rival, asked)) for name, gate in gates
            )
            judged = Judged(model, verdicts, None, number_of(before), asked)
            with store_lock(uri):
                if number_of(champion_of(client, model)) != judged.before:
                    continue
                if not all(verdict.passed for _, verdict in verdicts):
                    _write_verdicts(client, run, judged)
                    return judged
                version = _version(server or client, run, judged, model_id)
                # Another machine has a lock of its own.
                if number_of(champion_of(client, model)) == judged.before:
                    judged = dataclasses.replace(judged, version=version)
                    _write_verdicts(client, run, judged)
                    (server or client).set_registered_model_alias(model, CHAMPION, str(version))
                    _describe(client, model, version, _described(run))
                    _clear_pending(client, client.get_model_version(model, str(version)))
                    return judged
                client.delete_model_version(model, str(version))
    raise RunError(f"The champion of {model} changed {MAX_ATTEMPTS} times during judging.")


def roll_back(
    client: MlflowClient, model: str, server: MlflowClient | None = None
) -> tuple[int, int]:
    """Make the previous champion the champion again; returns the versions, from and to.

    Args:
        client, model, server: as `promote` has them.

    Raises:
        UserError: there is no such model or champion, or none before it.
    """
    uri = client.tracking_uri
    with store_errors(uri), store_lock(uri):
        known = [found.name for found in client.search_registered_models()]
        if model not in known:
            raise UserError(f"no registered model named '{model}'.{suggestion(model, known)}")
        now = champion_of(client, model)
        if now is None:
            raise UserError(f"{model} has no champion.")
        earlier = now.tags.get(REPLACED)
        if not earlier:
            raise UserError(f"version {now.version} of {model} is its first champion.")
        if earlier not in {str(found.version) for found in versions_of(client, model)}:
            raise UserError(f"version {earlier} of {model}, the champion before, is deleted.")
        client.set_model_version_tag(
            model, str(now.version), ROLLED_BACK, f"{_now()} by {user_name()}"
        )
        (server or client).set_registered_model_alias(model, CHAMPION, earlier)
        version = client.get_model_version(model, earlier)
        _describe(client, model, int(earlier), version.description or "")
    return int(now.version), int(earlier)


def _predictions_of(client: MlflowClient, champion: ModelVersion | None) -> PredictionTable | None:
    if champion is None:
        return None
    run = if_there(client.get_run, str(champion.run_id))
    if run is not None:
        with suppress(UserError):  # it has recorded none
            return recorded_predictions(client, run)
    raise UserError(
        f"version {champion.version} of {champion.name} is the champion, but what it "
        "predicted is not recorded, so no gate can compare with it. Delete its alias "
        f"'{CHAMPION}' in MLflow to judge without it."
    )


def _version(client: MlflowClient, run: Run, judged: Judged, model_id: str) -> int:
    """Register the run's model as a version that is not yet the champion."""
    from mlflow.exceptions import MlflowException

    tags = _stamp(judged) | {PENDING: "true"}
    if judged.before is not None:
        tags[REPLACED] = str(judged.before)
    with suppress(MlflowException):  # it is there
        client.create_registered_model(judged.model)
    for found, status in statuses(client, judged.model):
        # Of a promotion that was cut short before the alias was moved.
        if found.run_id == run.info.run_id and status == NEVER and PENDING in found.tags:
            client.delete_model_version(judged.model, str(found.version))
    with current_store(client.tracking_uri):  # where MLflow looks the model's id up
        made = client.create_model_version(
            judged.model,
            source=f"models:/{model_id}",
            run_id=run.info.run_id,
            tags=tags,
            description=_described(run),
            model_id=model_id,
            await_creation_for=0,  # it is there: else MLflow logs that it waits
        )
    return int(made.version)


def _described(run: Run) -> str:
    """What people read of a version: `97.5 % on digits, from run lenet·adam·digits #16`."""
    accuracy = percent(run.data.metrics.get(ACCURACY))
    data = run.data.tags.get("dataset")
    return f"{accuracy}{f' on {data}' if data else ''}, from run {run.info.run_name}"


def _describe(client: MlflowClient, model: str, version: int, text: str) -> None:
    """Say on a registered model's page what its champion is, unless a person has written there."""
    from mlflow.exceptions import MlflowException

    begins = f"The {CHAMPION} is version "
    with suppress(MlflowException):  # it is a courtesy: the alias says which one it is
        before = client.get_registered_model(model).description or ""
        if not before or before.startswith(begins):
            client.update_registered_model(model, f"{begins}{version}: {text}.")


def _clear_pending(client: MlflowClient, version: ModelVersion) -> None:
    """Note that the promotion of a version is complete."""
    if PENDING in version.tags:
        client.delete_model_version_tag(version.name, str(version.version), PENDING)


def _write_verdicts(client: MlflowClient, run: Run, judged: Judged) -> None:
    """Write the verdicts into the run."""
    run_id = run.info.run_id
    verdicts = {name: asdict(verdict) for name, verdict in judged.verdicts}
    content = {
        "model": judged.model,
        "version": judged.version,
        "before": judged.before,
        "asked": judged.asked,
    }
    client.log_dict(run_id, content | {"gates": verdicts}, FILE)
    refused = [name for name, verdict in judged.verdicts if not verdict.passed]
    outcome = f"refused by {', '.join(refused)}" if refused else f"version {judged.version}"
    tags = {OUTCOME: outcome, f"{OUTCOME}.model": judged.model}
    for key, value in (tags | _stamp(judged)).items():
        client.set_tag(run_id, key, value)


def _stamp(judged: Judged) -> dict[str, str]:
    """When it was judged, for whom, and why it ended so."""
    why = "; ".join(f"{name}: {verdict.reason}" for name, verdict in judged.verdicts)
    if why and judged.asked:
        why += f"; the test samples were asked {times(judged.asked)}"
    return {AT: _now(), BY: user_name(), WHY: (why or "no gate was asked for")[:SHOWN_WHY]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
