"""`torchyard verify`: a run is trained again from its record."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipelines.command_line import run_id
from tests.pipelines.proof.test_bundle import rewritten
from torchyard.core.errors import RunError, UserError

QUICK = ("digits", "train.epochs=1", "model=linear")


@pytest.fixture(scope="module")
def trained(workspace, folder):
    """The ids of two runs."""
    return [
        run_id(workspace.invoke("run", *QUICK, *more)) for more in ((), ("train.max_steps=20",))
    ]


def test_a_run_is_proven_by_training_it_again(workspace, client, trained):
    better = trained[0]
    printed = workspace.invoke("verify", better)
    digest = client.get_run(better).data.tags["weights_digest"]
    assert "Reproduced." in printed
    assert digest in printed
    assert client.get_run(better).data.tags["torchyard.verified"] == digest
    assert not list(Path("mlruns/runs", better).glob("*.tmp"))


def test_a_run_that_is_not_what_its_record_says_is_not_proven(workspace, client, trained, capsys):
    worse = trained[1]
    client.set_tag(worse, "weights_digest", "0" * 64)
    with pytest.raises(RunError, match="has other weights; nothing that is recorded differs"):
        workspace.invoke("verify", worse)
    client.set_tag(worse, "torch_version", "1.0")
    client.set_tag(worse, "plugin.model", "torchyard==0.0.1")
    from torchyard.pipelines.cli import app

    with pytest.raises(RunError, match="has other weights; the above differs"):
        app(["verify", worse], standalone_mode=False)
    printed = capsys.readouterr().out
    assert re.search(r"torch_version +1\.0 +\d", printed)
    assert re.search(r"plugin\.model +torchyard==0\.0\.1 +torchyard==", printed)
    assert "torchyard.verified" not in client.get_run(worse).data.tags


def test_a_difference_is_given_with_a_reason_and_where_the_trainings_part(
    workspace, client, trained
):
    from torchyard.core.tracking.queries.lookup import find_run
    from torchyard.pipelines.proof.claim import Claim, portable
    from torchyard.pipelines.proof.rebuilding import Rebuilt, differences, parting, unexplained

    claim = Claim.of_run(client, find_run(client, trained[0]))
    same = Rebuilt(claim.weights, claim.data + "0", claim.environment, claim.epochs)
    assert differences(claim, same, {"plugin.model": ("a", "a")}) == []
    assert parting(claim, same) == "the training losses of all 1 epochs are the same"
    assert "the recorded digest that was changed" in unexplained(claim, same)
    other = Rebuilt("0", "0", {**claim.environment, "threads": "64"}, {"1": 99.0, "2": 0})
    found = differences(claim, other, {"plugin.model": ("a", "b"), "model.weights": ("c", "d")})
    assert [each.what for each in found] == ["threads", "plugin.model", "model.weights", "data set"]
    assert all(each.reason for each in found)
    assert re.search(r"first in epoch 1: .* was recorded, 99 it is now", parting(claim, other))
    assert parting(claim, Rebuilt("0", "0", {}, {})) == ""
    on = replace(claim, extends="optimizer.lr is 0.1 and was 0.2")
    assert unexplained(on, same).endswith("not as one run: optimizer.lr is 0.1 and was 0.2")
    with pytest.raises(UserError, match="cannot be bundled: it trained a finished run on"):
        portable(on)
    stored = {**claim.config, "model": {**claim.config["model"], "weights": "digits@champion"}}
    with pytest.raises(UserError, match=r"model.weights: digits@champion is a run or model of"):
        portable(replace(claim, config=stored))
    with pytest.raises(UserError, match=r"torch \S+ is installed, and it was trained with 1\.0"):
        portable(replace(claim, environment={"torch_version": "1.0"}))


def test_a_bundle_proves_a_run_without_its_store(workspace, trained, tmp_path, capsys):
    file = tmp_path / "run.zip"
    printed = workspace.invoke("bundle", trained[0], "--to", str(file))
    digest = re.search(r"sha256 (\w{64})", printed)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        printed = workspace.invoke("verify", "run.zip", "--digest", digest)
        assert "Reproduced." in printed
        assert sorted(each.name for each in tmp_path.iterdir()) == ["run.zip"]  # nothing is left
        with pytest.raises(RunError, match=r"MANIFEST.json: its sha256 is"):
            workspace.invoke("verify", "run.zip", "--digest", "00")
        with pytest.raises(UserError, match=r"train.seed=1: would train something else"):
            workspace.invoke("verify", "run.zip", "train.seed=1")
    with pytest.raises(UserError, match="--digest: is for a bundle"):
        workspace.invoke("verify", trained[0], "--digest", digest)
    with pytest.raises(UserError, match=r"--to: .* must be a \.zip in a folder that there is"):
        workspace.invoke("bundle", trained[0], "--to", "proof.tar")


TABLED = """
from pathlib import Path
from torchyard import ModelParams, hookimpl


class Tabled(ModelParams):
    table: Path

    def build(self, input_shape, num_classes):
        from torch import nn

        width = int(self.table.read_text())
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))


@hookimpl
def register_models(register):
    register("tabled", Tabled)
"""


@pytest.mark.slow
def test_a_file_that_a_plugins_parameter_names_and_that_changed_is_named(
    workspace, client, tmp_path, capsys
):
    from torchyard.pipelines.cli import app

    table = tmp_path / "width.txt"
    table.write_text("8")
    with workspace.plugin_file("tabled", TABLED):
        words = ("digits", "train.epochs=1", "model=tabled", f"model.table={table}")
        trained = run_id(workspace.invoke("run", *words))
        table.write_text("9")
        with pytest.raises(RunError, match="has other weights; the above differs"):
            app(["verify", trained], standalone_mode=False)
    before, now = (hashlib.sha256(each).hexdigest() for each in (b"8", b"9"))
    printed = "".join(capsys.readouterr().out.split())
    assert re.search(rf"model\.table.*sha256:{before}.*sha256:{now}", printed)


PLUGIN = """
from torch import nn
from torchyard import ModelParams, hookimpl
from _width import WIDTH


class Own(ModelParams):
    def build(self, input_shape, num_classes):
        size = input_shape[0] * input_shape[1] * input_shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(size, WIDTH), nn.Linear(WIDTH, num_classes))


@hookimpl
def register_models(register):
    register("own", Own)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes
def test_a_stranger_rebuilds_a_run_with_its_plugins_or_is_told_what_differs(workspace, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "torchyard_plugins").mkdir(parents=True)
    theirs.mkdir()
    (ours / "torchyard_plugins" / "own.py").write_text(PLUGIN)
    (ours / "torchyard_plugins" / "_width.py").write_text("WIDTH = 12\n")
    file = theirs / "run.zip"

    def verify(*options):
        return workspace.torchyard("verify", "run.zip", *options, cwd=theirs)

    for words in (
        ("run", "digits", "model=own", "train.epochs=2", "--quiet"),
        ("bundle", "latest", "--to", str(file)),
    ):
        done = workspace.torchyard(*words, cwd=ours)
        assert done.returncode == 0, done.stderr
    done = verify()
    assert done.returncode == 2
    assert "brings code, 0/_width.py, 0/own.py" in done.stderr
    done = verify("--run-plugins")
    assert (done.returncode, "Reproduced." in done.stdout) == (0, True), done.stderr

    whole = file.read_bytes()

    def changed(name, old, new):
        """Verify a bundle with a file changed, and a manifest that agrees with it."""
        file.write_bytes(whole)
        change = lambda files: files.update({name: re.sub(old, new, files[name])})  # noqa: E731
        rewritten(file, change, manifest=True)
        return verify("--run-plugins")

    done = changed("plugins/0/_width.py", b"12", b"13")
    assert done.returncode == 1
    assert "model own: its file is not the one that the configuration names" in done.stderr
    done = changed("config.yaml", rb"(?s)(\ntrain:.*?\n  seed: )0", rb"\g<1>1")
    assert done.returncode == 1
    assert "other weights; nothing that is recorded differs" in done.stderr
    assert "the training loss differs first in epoch 1" in done.stderr
