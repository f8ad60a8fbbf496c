"""Runs that belong together."""

from __future__ import annotations

from torchyard.core.tracking.queries.runs import PARENT, STUDY, TRIAL_STATE, study_under_way


def test_a_trial_stands_for_its_study_until_that_has_finished(client) -> None:
    def begun(**tags):
        return client.create_run("0", tags=tags).info.run_id

    study = begun(**{STUDY: "s"})
    under_way, ended = begun(**{PARENT: study}), begun(**{PARENT: study, TRIAL_STATE: "COMPLETE"})

    def stands_for(trial, *, latest):
        run = study_under_way(client, client.get_run(trial), latest=latest)
        return run and run.info.run_id

    try:
        assert stands_for(under_way, latest=True) == study
        assert stands_for(under_way, latest=False) == study
        assert stands_for(ended, latest=True) == study
        assert stands_for(ended, latest=False) is None
        assert stands_for(study, latest=True) is None
        client.set_terminated(study)
        assert stands_for(under_way, latest=True) is None
    finally:
        for each in (study, under_way, ended):
            client.delete_run(each)
