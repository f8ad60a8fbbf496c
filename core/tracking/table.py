"""The runs of a store as a table: which of them, in which order, with which columns.

The store itself filters and sorts, so that ten thousand runs are as quick as ten.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchyard.core.errors import UserError, suggestion
from torchyard.core.tracking.store import current_store

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
    "worst": Column("metrics", "test/worst_recall"),
    "worst_class": Column("tags", "worst_class"),
    "images_per_second": Column("metrics", "train/mean_images_per_second"),
    "device": Column("tags", "device"),
}
OPERATORS = ("!=", ">=", "<=", "=", ">", "<", "~")


@dataclass(frozen=True)
class RunQuery:
    """Which runs, and in which order.

    Attributes:
        chosen, order: MLflow's filter and order.
        columns: those of `COLUMNS`, and each other key that was named.
    """

    chosen: str
    order: tuple[str, ...]
    columns: dict[str, Column]

    @classmethod
    def parse(
        cls, conditions: Sequence[str] = (), sort: str = "started", reverse: bool = False
    ) -> RunQuery:
        """Read what a person asks for.

        Args:
            conditions: "KEY=VALUE", or with one of != >= <= > < ~ (contains); KEY is a
                column, a setting ("optimizer.momentum") or a metric ("test/recall/cat").
                All of them are to be satisfied.
            sort: a key; numbers and times begin with the greatest, texts with A.
            reverse: the other way round. Runs without a metric to sort by are left out.

        Raises:
            UserError: with every condition that is malformed.
        """
        problems: list[str] = []
        filters: list[str] = []
        columns = dict(COLUMNS)
        for condition in conditions:
            try:
                key, column, text = _condition(condition)
            except UserError as error:
                problems += error.problems
                continue
            filters.append(text)
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
        newest = COLUMNS["started"]
        order = [f"{by.field} {direction}", *([] if by == newest else [f"{newest.field} DESC"])]
        return cls(" and ".join(filters), tuple(order), columns)

    def table(self, client: MlflowClient, limit: int = 20) -> pd.DataFrame:
        """At most `limit` runs, one row each; what a run does not have is missing."""
        import mlflow

        with current_store(client.tracking_uri):
            runs = mlflow.search_runs(
                search_all_experiments=True,
                filter_string=self.chosen,
                max_results=limit,
                order_by=list(self.order),
                output_format="list",
            )
        return _frame(runs, self.columns)


def _condition(condition: str) -> tuple[str, Column, str]:
    match = re.match(r"(.+?)(!=|>=|<=|=|>|<|~)(.*)", condition, re.DOTALL)
    if not match:
        raise UserError(
            f"'{condition}' is not a condition  (KEY, one of {' '.join(OPERATORS)}, VALUE)"
        )
    key, sign, value = (part.strip() for part in match.groups())
    column = _column(key, condition)
    if column.key == "start_time":
        return key, column, f"{column.field} {sign} {_milliseconds(value, condition)}"
    if column.numeric:
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            raise UserError(f"'{condition}': {key} is a number, '{value}' is not") from None
        if sign == "~":
            raise UserError(f"'{condition}': {key} is a number, which contains nothing")
        return key, column, f"{column.field} {sign} {number!r}"
    if sign not in ("=", "!=", "~"):
        raise UserError(f"'{condition}': {key} is a text  (accepts: = != ~)")
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise UserError(f"'{condition}': MLflow compares with no text that has both ' and \"")
    if key == "status":
        value = value.upper()
    if sign == "~":
        sign, value = "ILIKE", f"%{value}%"
    return key, column, f"{column.field} {sign} {quote}{value}{quote}"


def _column(key: str, named: str) -> Column:
    if key in COLUMNS:
        return COLUMNS[key]
    if "`" not in key and "/" in key.strip("/"):
        return Column("metrics", key)
    if "`" not in key and "." in key.strip("."):
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


KEY = "torchyard"  # in an address: …/runs?viewStateShareKey=torchyard
TAG = f"mlflow.sharedViewState.{KEY}"


def results_view() -> str:
    """The value of the tag: as MLflow 3.17's own page writes it, deflated."""
    columns = [column.field for column in COLUMNS.values() if column.place != "attributes"]
    state = {"orderByKey": "attributes.start_time", "orderByAsc": False, "selectedColumns": columns}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return json.dumps(view)
