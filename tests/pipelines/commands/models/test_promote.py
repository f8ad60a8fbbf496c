"""Promotion in the flow and by command, with a real store."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.command_line import run_id
from torchyard.core.errors import RunError, UserError

QUICK = ("digits", "train.epochs=1", "model=linear")


@pytest.fixture(scope="module")
def nights(workspace, folder):
    """Three nights: the first champion, a better one, one that is worse."""
    promote = (
        "promote.model=digits",
        "promote.gates=[beats_champion,{name: min_accuracy, threshold: 0.3}]",
    )
    return [
        workspace.invoke("run", *QUICK, *promote, *more)
        for more in ((), ("train.epochs=6",), ("train.max_steps=20",))
    ]


def test_every_night_the_better_model_is_the_champion(workspace, client, nights):
    first, better, worse = nights
    assert "champion of digits: version 1\n" in first
    assert "champion of digits: version 2, in place of version 1" in better
    assert "not the champion of digits (version 2 stays): refused by beats_champion" in worse
    version = client.get_model_version_by_alias("digits", "champion")
    assert (str(version.version), version.run_id) == ("2", run_id(better))
    accuracy = client.get_run(version.run_id).data.metrics["test/accuracy"]
    name = client.get_run(version.run_id).info.run_name
    assert version.description == f"{100 * accuracy:.1f} % on digits, from run {name}"
    about = client.get_registered_model("digits").description
    assert about == f"The champion is version 2: {version.description}."
    for printed in nights:  # none of them has failed
        assert client.get_run(run_id(printed)).info.status == "FINISHED"
    refused = client.get_run(run_id(worse))
    assert refused.data.tags["torchyard.promotion"].startswith("refused by beats_champion")
    assert refused.data.metrics["time/promote_seconds"] > 0
    assert "promotion.json" in {each.path for each in client.list_artifacts(run_id(worse))}
    assert refused.data.params["promote.model"] == "digits"

    rows = json.loads(workspace.invoke("models", "--json"))
    assert [(row["version"], row["status"]) for row in rows if row["model"] == "digits"] == [
        (None, refused.data.tags["torchyard.promotion"]),
        (2, "champion"),
        (1, "replaced by version 2"),
    ]
    listed = workspace.invoke("models", "digits")
    assert listed.splitlines()[1].startswith("★ v2 ")
    assert "replaced by v2" in listed
    assert "1 refused, the last " in listed
    assert re.search(r"^  trained on digits, digest [0-9a-f]{16}$", listed, re.MULTILINE)
    assert "refused by beats_champion" in workspace.invoke("models", "digits", "--refused")
    assert "30.00% are required" in listed


def test_prefect_says_in_the_final_state_what_came_out(client, nights):
    from prefect.client.orchestration import get_client

    said = []
    with get_client(sync_client=True) as prefect:
        for printed in nights:
            run = client.get_run(run_id(printed))
            flow_run = prefect.read_flow_run(run.data.tags["prefect.flow_run_id"])
            accuracy = run.data.metrics["test/accuracy"]
            said.append((flow_run.state.message, accuracy))
    (first, _), (better, right), (worse, wrong) = said
    assert re.fullmatch(r"\d\d\.\d %, promoted as v1", first)
    gained = 100 * (right - said[0][1])
    assert better == f"{100 * right:.1f} % ({gained:+.1f}), promoted as v2"
    lost = 100 * (wrong - right)
    assert worse.startswith(f"{100 * wrong:.1f} % (−{-lost:.1f}), refused by beats_champion")


def test_by_hand_a_refusal_is_exit_status_1_and_says_why(workspace, client, nights):
    worse = run_id(nights[2])
    with pytest.raises(RunError, match=r"not the champion of digits .version 2 stays.: refused by"):
        workspace.invoke("promote", worse)  # with the gates of its own configuration
    with pytest.raises(UserError, match=r"Did you mean 'promote.model'"):
        workspace.invoke("promote", worse, "modl=digits")
    with pytest.raises(
        UserError, match=r"no gate named 'min_acuracy'. Did you mean 'min_accuracy'"
    ):
        workspace.invoke("promote", worse, "gates=[min_acuracy]")


def test_the_champion_answers_for_its_model(workspace, client, nights, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path / "a.png")
    ask = (str(tmp_path / "a.png"), "--json", "--top", "10")
    answers = {
        name: json.loads(workspace.invoke("predict", name, *ask))[0]["classes"]
        for name in ("digits", "digits/2", "digits/1", "digits@champion", run_id(nights[1]))
    }
    assert answers["digits"] == answers["digits/2"] == answers[run_id(nights[1])]
    assert answers["digits"] == answers["digits@champion"]
    assert answers["digits"] != answers["digits/1"]
    with pytest.raises(UserError, match="digits/7: no such version"):
        workspace.invoke("predict", "digits/7", *ask)
    with pytest.raises(UserError, match=r"registered models: digits"):
        workspace.invoke("predict", "digts", *ask)


def test_rolled_back_and_promoted_again(workspace, client, nights):
    assert "version 1 is the champion again, version 2 is not" in workspace.invoke(
        "rollback", "digits"
    )
    assert str(client.get_model_version_by_alias("digits", "champion").version) == "1"
    assert client.get_registered_model("digits").description.startswith("The champion is version 1")
    with pytest.raises(
        UserError, match=r"no registered model named 'digit'. Did you mean 'digits'"
    ):
        workspace.invoke("rollback", "digit")
    printed = workspace.invoke("promote", run_id(nights[1]), "gates=[beats_champion]")
    assert "is now champion of digits: version 3, in place of version 1" in printed


def test_a_run_without_a_promotion_names_no_model(workspace, nights):
    bare = run_id(workspace.invoke("run", *QUICK, "train.max_steps=5"))
    with pytest.raises(UserError, match=r"promote.model: .* names no registered model: add model="):
        workspace.invoke("promote", bare)
    assert "is now champion of other: version 1" in workspace.invoke("promote", bare, "model=other")
