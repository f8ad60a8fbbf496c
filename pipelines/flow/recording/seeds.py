"""What the parent of several seeds records: its start, and the summary of its children."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.schema import SINGLE_KINDS, RunConfig
from torchyard.core.report.seeds_page import SeedResults, SeedRun
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import class_metric_keys
from torchyard.core.tracking.queries.recorded import recorded_predictions
from torchyard.core.tracking.queries.runs import SEEDS
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import open_store, page_address, run_folder, tracking_uri
from torchyard.pipelines.flow.recording.results import curves
from torchyard.pipelines.flow.recording.start import config_text, name_stem, parameters
from torchyard.pipelines.services.manager import served_url
from torchyard.pipelines.worker.process import abort_shared_worker

if TYPE_CHECKING:
    from mlflow.entities import Run


def start_seeds(resolved: ResolvedConfig, count: int, run_id: str | None) -> RunRecord:
    """Start or resume the MLflow run whose children are the seeds of one configuration."""
    config = resolved.config
    if run_id is not None:
        record = RunRecord.resume(run_id)
    else:
        tags = {kind: resolved.plugins[kind].name for kind in SINGLE_KINDS} | {SEEDS: str(count)}
        settings = parameters(config)
        stem = f"{name_stem(config)}, {count} seeds"
        record = RunRecord.start(name_stem=stem, parameters=settings, tags=tags)
    record.sender.on_taken_over = abort_shared_worker
    record.log_config(config_text(config))
    return record


def record_seeds(record: RunRecord, children: Mapping[int, Run], config: RunConfig) -> SeedResults:
    """Summarize the runs of several seeds as metrics and a page of their parent."""
    client = open_store(uri := tracking_uri())
    with store_errors(uri):
        runs = [
            SeedRun(
                seed,
                run.info.run_name,
                served_url(page_address(uri, run.info.experiment_id, run.info.run_id)),
                recorded_predictions(client, run),
                curves(run_folder(uri, run)),
            )
            for seed, run in sorted(children.items())
        ]
    results = SeedResults.of(runs)
    found, (loss, loss_spread) = results.summary, results.losses
    metrics = {
        "seeds/count": found.seeds,
        "seeds/accuracy": found.mean,
        "seeds/accuracy_std": found.spread,
        "seeds/accuracy_low": found.over_both[0],
        "seeds/accuracy_high": found.over_both[1],
        "seeds/accuracy_low_over_seeds": found.over_seeds[0],
        "seeds/accuracy_high_over_seeds": found.over_seeds[1],
        "seeds/loss": loss,
        "seeds/loss_std": loss_spread,
    }
    table = results.classes
    for column, part in (("mean", "recall"), ("spread", "recall_std")):
        keys = class_metric_keys(list(table["class"]), f"seeds/{part}/")
        metrics |= dict(zip(keys, map(float, table[column]), strict=True))
    record.log_metrics({key: value for key, value in metrics.items() if value == value}, step=0)
    record.log_text(results.page(record.name, config_text(config)), "report.html")
    record.log_text(table.to_csv(index=False), "per_class.csv")
    return results
