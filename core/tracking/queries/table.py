"""The runs of a store as a table: which of them, in which order, with which columns.

The store itself filters and sorts, so that ten thousand runs are as quick as ten. Only settings
are compared here where they are numbers: MLflow keeps them as texts.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import UserError, suggestion
from torchyard.core.tracking.delivery import REASON
from torchyard.core.tracking.mlflow_format import BEST
from torchyard.core.tracking.queries.runs import NEWEST, PARENT, RECENT, quoted, search
from torchyard.core.tracking.store import run_experiments

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Column:
    """One column, and where MLflow keeps it.

    Attributes:
        place: "attributes", "tags", "params" or "metrics".
        key: its name there.
    """

    place: str
    key: str

    @property
    def field(self) -> str:
        """As MLflow's filters and orders name it."""
        quote = "" if self.place == "attributes" else "`"
        return f"{self.place}.{quote}{self.key}{quote}"

    @property
    def numeric(self) -> bool:
        """Whether it is a number, of which the greatest is listed first."""
        return self.place == "metrics" or self.key == "start_time"


COLUMNS = {
    "run": Column("attributes", "run_name"),
    "id": Column("attributes", "run_id"),
    "status": Column("attributes", "status"),
    "started": Column("attributes", "start_time"),
    "seconds": Column("metrics", "time/total_seconds"),
    "dataset": Column("tags", "dataset"),
    "model": Column("tags", "model"),
    "optimizer": Column("tags", "optimizer"),
    "lr": Column("metrics", "train/base_learning_rate"),
    "epochs": Column("metrics", "train/epochs"),
    "accuracy": Column("metrics", "test/accuracy"),
    "seeds": Column("metrics", "seeds/count"),
    "mean_accuracy": Column("metrics", "seeds/accuracy"),
    "spread": Column("metrics", "seeds/accuracy_std"),
    "best_accuracy": Column("metrics", "study/accuracy"),
    "worst": Column("metrics", "test/worst_recall"),
    "worst_class": Column("tags", "worst_class"),
    "images_per_second": Column("metrics", "train/mean_images_per_second"),
    "device": Column("tags", "device"),
    "schedule": Column("tags", "schedule"),
    "parent": Column("tags", PARENT),
    "reason": Column("tags", REASON),
}
OPERATORS = ("!=", ">=", "<=", "=", ">", "<", "~")
STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
COMPARED = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
LITERALS = {"true": "true", "false": "false", "none": "null", "null": "null"}  # as recorded


@dataclass(frozen=True)
class SettingCondition:
    """A condition on a setting, whose recorded text may be a number."""

    key: str
    sign: str
    value: str

    def holds(self, run: Run) -> bool:
        """Whether a run has the setting, and it compares so."""
        recorded = run.data.params.get(self.key)
        if recorded is None:
            return False
        compare, value = COMPARED[self.sign], _number(self.value)
        if (number := _number(recorded)) is not None and value is not None:
            return bool(compare(number, value))
        same = recorded in (self.value, LITERALS.get(self.value.lower()))
        return same == (self.sign == "=") if self.sign in ("=", "!=") else False


@dataclass(frozen=True)
class RunQuery:
    """Which runs, and in which order.

    Attributes:
        chosen, order: MLflow's filter and order.
        settings: conditions that MLflow cannot judge.
        columns: those of `COLUMNS`, and each other key that was named.
        by: the column to sort by.
    """

    chosen: str
    order: tuple[str, ...]
    settings: tuple[SettingCondition, ...]
    columns: dict[str, Column]
    by: Column

    @classmethod
    def parse(
        cls, conditions: Sequence[str] = (), sort: str = "started", reverse: bool = False
    ) -> RunQuery:
        """Read what a person asks for.

        Args:
            conditions: "KEY=VALUE", or with one of != >= <= > < ~ (contains); KEY is a
                column, a setting ("optimizer.momentum") or a metric ("test/recall/cat";
                "val/loss" is that of the kept weights). All of them are to be satisfied.
            sort: a key; numbers and times begin with the greatest, texts with A.
            reverse: the other way round. Runs without a metric to sort by are left out.

        Raises:
            UserError: with every condition that is malformed.
        """
        problems: list[str] = []
        filters: list[str] = []
        settings: list[SettingCondition] = []
        columns = dict(COLUMNS)
        for condition in conditions:
            try:
                key, column, wanted = _condition(condition)
            except UserError as error:
                problems += error.problems
                continue
            if isinstance(wanted, SettingCondition):
                settings.append(wanted)
            else:
                filters.append(wanted)
            columns[key] = column
        try:
            by = columns[sort] = _column(sort, "--sort")
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)
        if by.place == "metrics":
            # With both conditions SQLite joins the metric to the runs by an index, which takes
            # a fiftieth of the time.
            filters += [f"{by.field} >= -1e308", "attributes.run_id != ''"]
        direction = "DESC" if by.numeric != reverse else "ASC"
        order = [f"{by.field} {direction}", *([] if by == COLUMNS["started"] else [NEWEST])]
        return cls(" and ".join(filters), tuple(order), tuple(settings), columns, by)

    def table(self, client: MlflowClient, limit: int = 20, settings: bool = False) -> pd.DataFrame:
        """At most `limit` runs, one row each; what a run does not have is missing.

        Args:
            client: of the store.
            limit: number of rows.
            settings: whether every setting that one of them has is a column, too.
        """
        found = _search(client, self.chosen, self.order, limit)
        met = (run for run in found if all(each.holds(run) for each in self.settings))
        runs, columns = list(islice(met, limit)), self.columns
        if settings:
            keys = sorted({key for run in runs for key in run.data.params} - {*columns})
            columns = columns | {key: Column("params", key) for key in keys}
        return _frame(runs, columns)

    def leaves_out(self, client: MlflowClient) -> bool:
        """Whether there are recent runs without the metric that is sorted by."""
        if self.by.place != "metrics":
            return False
        recent = islice(_search(client, "", (NEWEST,), RECENT), RECENT)
        return any(self.by.key not in run.data.metrics for run in recent)

    def check_names(self, client: MlflowClient) -> None:
        """Find out whether what was named is there, if no run was found.

        Raises:
            UserError: with every metric and setting that no run has, and the nearest that one has.
        """
        recent = list(islice(_search(client, "", (NEWEST,), RECENT), RECENT))
        problems = []
        for name, column in self.columns.items():
            if name in COLUMNS or not recent:
                continue
            exists = f"{column.field} >= -1e308" if column.numeric else f"{column.field} LIKE '%'"
            if next(_search(client, exists, (NEWEST,), 1), None) is None:
                found = {key for run in recent for key in getattr(run.data, column.place)}
                known = sorted(key for key in found if not key.startswith(BEST))
                # The metrics of single classes and layers would fill the terminal.
                listed = [key for key in known if key.count("/") < 2]
                kind = "metric" if column.numeric else "setting"
                hint = suggestion(name, listed, {key: key for key in known})
                problems.append(f"no run has the {kind} '{name}'.{hint}")
        if problems:
            raise UserError(problems)


def _search(client: MlflowClient, chosen: str, order: Sequence[str], page: int) -> Iterator[Run]:
    """The runs of all experiments; read page by page, as they are taken."""
    experiments = run_experiments(client)
    yield from search(client, experiments, chosen, order, page)


def _condition(condition: str) -> tuple[str, Column, str | SettingCondition]:
    """The key, its column, and MLflow's filter or what is to be judged here."""
    match = re.match(r"(.+?)(!=|>=|<=|=|>|<|~)(.*)", condition, re.DOTALL)
    if not match:
        raise UserError(
            f"'{condition}' is not a condition  (KEY, one of {' '.join(OPERATORS)}, VALUE)"
        )
    key, sign, value = (part.strip() for part in match.groups())
    column = _column(key, condition)
    number = _number(value)
    if column.numeric and sign == "~":
        raise UserError(f"'{condition}': {key} is a number, which contains nothing")
    if column.key == "start_time":
        return key, column, f"{column.field} {sign} {_milliseconds(value, condition)}"
    if column.numeric:
        if number is None:
            raise UserError(f"'{condition}': {key} is a number, '{value}' is not")
        return key, column, f"{column.field} {sign} {number!r}"
    if column.place == "params" and sign != "~":
        if number is not None or (value.lower() in LITERALS and sign in ("=", "!=")):
            return key, column, SettingCondition(column.key, sign, value)
        if sign not in ("=", "!="):
            raise UserError(f"'{condition}': '{value}' is not a number  (texts: = != ~)")
    if sign not in ("=", "!=", "~"):
        raise UserError(f"'{condition}': {key} is a text  (accepts: = != ~)")
    if key == "status" and sign != "~":
        value = value.upper()
        if value not in STATUSES:
            raise UserError(f"'{condition}': no such status.{suggestion(value, STATUSES)}")
    if sign == "~":
        sign, value = "ILIKE", f"%{value}%"
    if (text := quoted(value)) is None:
        raise UserError(f"'{condition}': MLflow compares with no text that has both ' and \"")
    return key, column, f"{column.field} {sign} {text}"


def _number(text: str) -> float | None:
    """A finite number, which may be a percentage; None for anything else."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _column(key: str, named: str) -> Column:
    if key in COLUMNS:
        return COLUMNS[key]
    if key.startswith("val/"):  # the last epoch's is of weights that may not be the kept ones
        key = f"{BEST}{key}"
    if "`" not in key and "/" in key.strip("/"):
        return Column("metrics", key)
    if "`" not in key and ("." in key.strip(".") or key in RunConfig.model_fields):
        return Column("params", key)
    raise UserError(
        f"'{named}': no column '{key}'.{suggestion(key, list(COLUMNS))}, a setting like "
        "optimizer.momentum, a metric like test/recall/cat"
    )


def _milliseconds(value: str, condition: str) -> int:
    """A date or a time of this machine's zone, as MLflow counts."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(value).timestamp() * 1000)
    except ValueError:
        raise UserError(f"'{condition}': '{value}' is not a date like 2026-01-31") from None


def _frame(runs: Sequence[Run], columns: dict[str, Column]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(
        {name: [_value(run, column) for run in runs] for name, column in columns.items()},
        columns=list(columns),
    )
    for name, column in columns.items():
        if column.place == "metrics":
            table[name] = table[name].astype(float)
    table["started"] = pd.to_datetime(table["started"], unit="ms", utc=True)
    return table


def _value(run: Run, column: Column) -> Any:
    if column.place == "attributes":
        return getattr(run.info, column.key)
    return getattr(run.data, column.place).get(column.key)
