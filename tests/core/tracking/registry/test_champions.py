"""The champion of a registered model, in a real MLflow store: promoted and rolled back."""

import json
from pathlib import Path

import pytest

from tests.core.tracking.registry.candidates import BEATS, champion, run
from torchyard.core.data.predictions import PREDICTIONS_FILE
from torchyard.core.errors import UserError
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.registry.champions import promote, roll_back
from torchyard.core.tracking.registry.versions import history


def test_the_better_one_takes_the_place_and_the_worse_one_does_not(client, prepared):
    first, better, worse = (run(client, prepared, right) for right in (30, 35, 32))
    judged = promote(client, first, "toy", BEATS)
    assert (judged.version, judged.before, champion(client)) == (1, None, (1, first.info.run_id))
    judged = promote(client, better, "toy", BEATS)
    assert judged.outcome == "champion of toy: version 2, in place of version 1"
    judged = promote(client, worse, "toy", BEATS)
    assert (judged.version, judged.before) == (None, 2)
    assert judged.outcome == "not the champion of toy (version 2 stays): refused by beats_champion"
    assert champion(client) == (2, better.info.run_id)

    # The verdicts with their figures stand in the runs.
    tags = client.get_run(worse.info.run_id).data.tags
    assert tags["torchyard.promotion"] == "refused by beats_champion"
    told = json.loads(
        Path(client.download_artifacts(worse.info.run_id, "promotion.json")).read_text()
    )
    assert told["model"] == "toy"
    assert told["gates"]["beats_champion"]["passed"] is False
    assert told["gates"]["beats_champion"]["figures"]["difference"] == pytest.approx(-3 / 40)

    # And so does who, when, why in the history, the newest first.
    rows = history(client, "toy")
    assert [(row["version"], row["status"], row["accuracy"]) for row in rows] == [
        (None, "refused by beats_champion", 32 / 40),
        (2, "champion", 35 / 40),
        (1, "replaced by version 2", 30 / 40),
    ]
    assert all(row["by"] and row["promoted_at"] and row["why"] for row in rows)
    assert rows == history(client)


def test_the_registered_version_is_the_model_that_the_run_logged(client, prepared):
    best = run(client, prepared, 30)
    promote(client, best, "toy", BEATS)
    version = client.get_model_version_by_alias("toy", "champion")
    [output] = client.get_run(best.info.run_id).outputs.model_outputs
    assert version.source == f"models:/{output.model_id}"


def test_rolled_back_the_champion_before_is_back_and_so_on(client, prepared):
    runs = [run(client, prepared, right) for right in (30, 32, 34)]
    for each in runs:
        promote(client, each, "toy", BEATS)
    assert roll_back(client, "toy") == (3, 2)
    assert champion(client) == (2, runs[1].info.run_id)
    assert roll_back(client, "toy") == (2, 1)
    with pytest.raises(UserError, match="version 1 of toy is its first champion"):
        roll_back(client, "toy")
    assert [row["status"].split(" by ")[0][:11] for row in history(client, "toy")] == [
        "rolled back",
        "rolled back",
        "champion",
    ]
    # What comes after takes the place of the one that is there now.
    last = run(client, prepared, 33)
    assert promote(client, last, "toy", BEATS).before == 1
    assert roll_back(client, "toy") == (4, 1)
    # One that was rolled back can become the champion again, as a version of its own.
    assert promote(client, runs[2], "toy", BEATS).version == 5
    # Asked again, as by a task that never heard its answer, it is what it is.
    assert promote(client, runs[2], "toy", BEATS).version == 5
    assert len(history(client, "toy")) == 5


def test_what_cannot_be_rolled_back_is_said(client, prepared):
    with pytest.raises(UserError, match="no registered model named 'toys'"):
        roll_back(client, "toys")
    for right in (30, 32):
        promote(client, run(client, prepared, right), "toy", BEATS)
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        roll_back(client, "toys")
    client.delete_model_version("toy", "1")
    with pytest.raises(UserError, match="version 1 of toy, the champion before, is deleted"):
        roll_back(client, "toy")
    client.delete_registered_model_alias("toy", "champion")
    with pytest.raises(UserError, match="toy has no champion"):
        roll_back(client, "toy")


def test_a_run_without_model_or_predictions_is_refused(client, prepared):
    record = RunRecord.start(name_stem="bare", parameters={}, tags={})
    record.finish("FINISHED")
    with pytest.raises(UserError, match="has no model: it is FINISHED"):
        promote(client, client.get_run(record.run_id), "toy", BEATS)
    first = run(client, prepared, 30)
    promote(client, first, "toy", BEATS)
    client.delete_run(first.info.run_id)
    for artifact in Path("mlruns").rglob(PREDICTIONS_FILE):
        if first.info.run_id in str(artifact):
            artifact.unlink()
    with pytest.raises(UserError, match="version 1 of toy is the champion, but what it predicted"):
        promote(client, run(client, prepared, 40), "toy", BEATS)
    assert champion(client) == (1, first.info.run_id)


def test_names_that_other_programs_gave_break_nothing(client, prepared):
    names = ["a'b", 'a"b', "a'b\"c", "it's \x1b[2J", "%", "a` = b"]
    for name in names:
        client.create_registered_model(name)
        client.create_model_version(name, "somewhere")
    candidate = run(client, prepared, 30)
    client.set_tag(candidate.info.run_id, "torchyard.promotion", "refused by min_accuracy")
    client.set_tag(candidate.info.run_id, "torchyard.promotion.model", "a'b")
    rows = history(client)
    assert {row["model"] for row in rows} == set(names)
    assert [row["status"] for row in history(client, "a'b")].count("refused by min_accuracy") == 1
    assert [row["version"] for row in history(client, "a'b\"c")] == [1]
    with pytest.raises(UserError, match="has no champion"):
        roll_back(client, "a'b\"c")
