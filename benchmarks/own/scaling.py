"""What a store and a study take as they grow: copied runs, requests, Optuna's part."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median

REQUESTS = 200
COPIED = ("params", "tags", "metrics", "latest_metrics")


def fill(database: Path, runs: int) -> None:
    """Copy a store's last run, as it is recorded, until the store has so many."""
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        columns = {
            table: [row[1] for row in store.execute(f"pragma table_info({table})")]
            for table in ("runs", *COPIED)
        }
        query = "select run_uuid, start_time from runs order by start_time desc limit 1"
        model, started = store.execute(query).fetchone()
        [(count,)] = store.execute("select count(*) from runs")
        for number in range(count, runs):
            new = uuid.uuid4().hex
            values = {
                "run_uuid": new,
                "start_time": started - 1000 * number,
                "name": f"run {number}",
            }
            for table, names in columns.items():
                taken = [f":{name}" if name in values else f'"{name}"' for name in names]
                if table != "runs":  # `name` is of runs alone
                    taken = [":run_uuid" if name == "run_uuid" else f'"{name}"' for name in names]
                insert = f"insert into {table} select {', '.join(taken)} from {table}"
                store.execute(f"{insert} where run_uuid = :model", {**values, "model": model})


def requests(uri: str) -> float:
    """Seconds of one request to a store: of the tag that the owner of a run renews."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    [experiment] = client.search_experiments(max_results=1)
    run_id = client.create_run(experiment.experiment_id).info.run_id
    seconds = []
    for number in range(REQUESTS):
        began = time.perf_counter()
        client.set_tag(run_id, "renewed", str(number))
        seconds.append(time.perf_counter() - began)
    client.delete_run(run_id)
    return median(seconds)


def asks(sampler: str, trials: int) -> float:
    """Seconds to ask for a trial, its values, and to tell its end, behind so many trials."""
    from torchyard.core.hosting.host import host
    from torchyard.core.study.plan import StudyPlan
    from torchyard.pipelines.commands.arguments import PRESETS
    from torchyard.pipelines.study.search import Search

    space = ("optimizer.lr=log(1e-4,1e-1)", "train.batch_size=int(16,128)")
    plan = StudyPlan.read("digits", space, {"sampler": sampler, "name": "s"}, PRESETS, host())
    with tempfile.TemporaryDirectory() as folder:
        search, seconds = Search(plan, Path(folder), 0, 1), []
        for _ in range(trials):
            began = time.perf_counter()
            number = search.ask()
            value = search.values(number)["optimizer.lr"]
            search.tell(number, "complete", float(value))
            seconds.append(time.perf_counter() - began)
    return median(seconds[-10:])


def main() -> None:
    """Do what the arguments say, and print the result."""
    what, *arguments = sys.argv[1:]
    if what == "fill":
        fill(Path(arguments[0]), int(arguments[1]))
        print(json.dumps({}))
    elif what == "requests":
        print(json.dumps({"seconds": requests(arguments[0])}))
    else:
        print(json.dumps({"seconds": asks(what, int(arguments[0]))}))


if __name__ == "__main__":
    main()
