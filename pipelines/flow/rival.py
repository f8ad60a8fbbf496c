"""The champion that a run's report compares it with."""

from __future__ import annotations

from contextlib import suppress

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.predictions import PredictionTable
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.paired_test import compare
from torchyard.core.report.run.headline import Rival
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.lookup import CHAMPION, recorded_predictions
from torchyard.core.tracking.store import if_there, open_store, tracking_uri


def find_rival(run_id: str, config: RunConfig, table: PredictionTable) -> Rival | None:
    """The champion of the model that the run is for; else any tested on the same samples.

    None where there is none but the run itself, or the store does not answer: a report needs none.

    Args:
        run_id: of the run.
        config: of the run.
        table: what it predicted of the test split.
    """
    client = open_store(tracking_uri())
    with suppress(RunError, UserError), store_errors(client.tracking_uri):
        champions = {
            found.name: int(found.aliases[CHAMPION])
            for found in client.search_registered_models()
            if CHAMPION in found.aliases
        }
        if config.promote is not None:
            name = config.promote.model
            champions = {name: champions[name]} if name in champions else {}
        for model, version in champions.items():
            found = client.get_model_version(model, str(version))
            run = if_there(client.get_run, str(found.run_id))
            if run is None or run.info.run_id == run_id:
                continue
            if run.data.tags.get("dataset") != config.dataset.name:
                continue
            with suppress(UserError):  # it was tested on other samples, or nothing is recorded
                difference = compare(recorded_predictions(client, run), table).overall
                return Rival(model, version, difference)
    return None
