"""The audits of data sets in MLflow: a run each, in an experiment of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from torchyard.core.audit.findings import AUDIT_FILE, Audit
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import link_or_copy
from torchyard.core.tracking.provenance import source_tags
from torchyard.core.tracking.store import audits_experiment, locked_store, page_address

AUDIT_PAGE = "audit.html"


def audit_metrics(audit: Audit) -> dict[str, float]:
    """The numbers of findings, and of leaked samples, by MLflow's names of them."""
    found = {f"audit/{kind.replace(' ', '_')}": count for kind, count in audit.counts.items()}
    found |= {f"audit/leaked_{split}": len(each) for split, each in audit.leaked.items()}
    return {name: float(value) for name, value in found.items()}


def record_audit(
    audit: Audit, prepared: PreparedDataset, page: str, settings: Mapping[str, str]
) -> tuple[str, str]:
    """Record an audit that no run asked for; returns the MLflow run's id, and its address.

    Args:
        settings: of the data set, as texts.

    Raises:
        UserError, RunError: the store cannot be used, or is out of reach.
    """
    with locked_store() as client, tempfile.TemporaryDirectory() as scratch:
        experiment = audits_experiment(client, client.tracking_uri)
        tags = source_tags() | {"dataset": prepared.name, "data_digest": prepared.digest}
        name = f"audit·{prepared.name}·{prepared.digest[:8]}"
        run = client.create_run(experiment.experiment_id, tags=tags, run_name=name)
        run_id = run.info.run_id
        for key, value in settings.items():
            client.log_param(run_id, key, value)
        for key, number in audit_metrics(audit).items():
            client.log_metric(run_id, key, number)
        html, table = Path(scratch, AUDIT_PAGE), Path(scratch, AUDIT_FILE)
        html.write_text(page, "utf-8")
        link_or_copy(prepared.folder / AUDIT_FILE, table)
        for file in (html, table):
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
        return run_id, page_address(client.tracking_uri, experiment.experiment_id, run_id)
