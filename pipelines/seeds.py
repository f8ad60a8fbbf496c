"""Several seeds of one configuration: a run in MLflow whose children they are.

Each child is a whole run of its own. The parent has their summary and a page. Killed in between,
it is resumed: seeds that have finished are not trained again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import UserError
from torchyard.core.formatting import percent
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.orphans import settle_owner, sync_run
from torchyard.core.tracking.queries.runs import seeds_of
from torchyard.pipelines.display import Display
from torchyard.pipelines.local_run import CallFlow

if TYPE_CHECKING:
    from mlflow.entities import Run

    from torchyard.core.report.seeds_page import SeedResults
    from torchyard.core.tracking.record import RunRecord

MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class SeedsOutcome:
    """What a finished run of several seeds returns.

    Attributes:
        run_id, name, url: of the parent.
        results: of the children.
    """

    run_id: str
    name: str
    url: str
    results: SeedResults

    @property
    def lines(self) -> list[str]:
        """What is printed of it."""
        found = self.results.summary
        both, alone = (
            " to ".join(percent(bound, space="") for bound in interval)
            for interval in (found.over_both, found.over_seeds)
        )
        return [
            f"{percent(found.mean, space='')} of {found.images:,} test samples right, the mean of "
            f"{found.seeds} seeds; standard deviation {100 * found.spread:.1f} points",
            f"95 % interval {both}, over other seeds and other test samples; "
            f"{alone} over other seeds",
        ]


def check_seeds(resolved: ResolvedConfig, count: int) -> None:
    """Refuse what cannot be done with several seeds.

    Raises:
        UserError: with every problem.
    """
    config, problems = resolved.config, []
    if not 2 <= count <= MOST_SEEDS:
        problems.append(f"--seeds: must be 2 to {MOST_SEEDS}, not {count}")
    if config.promote is not None:
        problems.append(
            "--seeds: the champion would be the luckiest of the seeds: set promote=none, and "
            "promote the one that you choose afterwards"
        )
    if config.train.nodes > 1:
        problems.append("--seeds: each seed trains on this host alone: leave train.nodes=1")
    if isinstance(config.train.seed, int) and config.train.seed + count > 2**32:
        problems.append("train.seed: the seeds that follow it are too large")
    if problems:
        raise UserError(problems)


def run_seeds(
    call: CallFlow,
    resolved: ResolvedConfig,
    count: int,
    shown: Display,
    run_id: str | None = None,
) -> SeedsOutcome:
    """Run a configuration with the seeds train.seed, train.seed + 1, …, and summarize them.

    Args:
        call: calls the flow for each.
        resolved: the configuration of the first.
        count: of the seeds.
        shown: follows the runs.
        run_id: of the parent, if it is resumed.

    Raises:
        What ended one of the runs early; the parent ends with it, and can be resumed.
    """
    from torchyard.pipelines.flow.failures import ended_as, reason_of
    from torchyard.pipelines.flow.recording import seeds
    from torchyard.pipelines.flow.recording.start import ending_note, with_drawn_seed
    from torchyard.pipelines.services.manager import served_url

    resolved = with_drawn_seed(resolved)
    record = seeds.start_seeds(resolved, count, run_id)
    try:
        first = resolved.config.train.drawn_seed
        for seed in range(first, first + count):
            shown.line("seed", f"{seed}, {seed - first + 1} of {count}")
            _run_seed(call, resolved, seed, record, shown)
        results = seeds.record_seeds(record, _children(record), resolved.config)
        record.finish("FINISHED")
    except BaseException as error:
        status = ended_as(error)
        ended = record.finish(status, reason_of(error))
        error.add_note(ending_note(record, status, ended))
        raise
    return SeedsOutcome(record.run_id, record.name, served_url(record.url), results)


def _run_seed(
    call: CallFlow, resolved: ResolvedConfig, seed: int, record: RunRecord, shown: Display
) -> None:
    """Run one seed, or what is left of it."""
    uri = store.tracking_uri()
    before = _children(record).get(seed)
    if before is not None:
        client = store.open_store(uri)
        with store_errors(uri):
            settle_owner(client, before, force=False, say=lambda text: None)
            before = sync_run(client, before)
        if before.info.status == "FINISHED":
            shown.line("seed", f"{seed} has finished: {before.info.run_name}")
            return
    train = resolved.config.train.model_copy(update={"seed": seed, "skip_repeats": False})
    config = resolved.config.model_copy(update={"train": train})
    shown.outcome = None
    try:
        call(
            dataclasses.replace(resolved, config=config),
            before.info.run_id if before else None,
            record.run_id,
        )
    except Exception:
        if shown.outcome is None:  # else the run is recorded, and Prefect does not know
            raise


def _children(record: RunRecord) -> dict[int, Run]:
    client = store.open_store(uri := store.tracking_uri())
    with store_errors(uri):
        return seeds_of(client, client.get_run(record.run_id))
