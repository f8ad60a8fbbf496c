"""Forty installed distributions: what is imported, what is listed, what can be turned off."""

import json
import os
import subprocess
import sys

import pytest

PLUGIN = '''\
"""Plugin {number}."""
from pathlib import Path

from torchyard import ModelParams, hookimpl

Path(__file__).with_suffix(".imported").touch()
{slow}

class Model(ModelParams):
    """The model of distribution {number}."""

    width: int = 4

    def build(self, input_shape, num_classes):
        from math import prod
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))


@hookimpl
def register_models(register):
    register("{name}", Model)
'''
SLOW = 17
FAMILY = """
@hookimpl
def register_losses(register):
    for size in (1, 2):
        register(f"family/{size}", Loss)
"""


def distribution(site, number, text, entry="plugin"):
    """What an installer leaves of a distribution: a package and its metadata."""
    package = site / f"strange_{number}"
    package.mkdir()
    # The package around the plugin must stay unimported, too.
    (package / "__init__.py").write_text('open(__file__ + ".imported", "w")\n')
    (package / "models.py").write_text(text)
    info = site / f"strange_{number}-1.{number}.dist-info"
    info.mkdir()
    name = f"Name: strange-{number}\nVersion: 1.{number}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}")
    (info / "entry_points.txt").write_text(f"[torchyard]\n{entry} = strange_{number}.models\n")


@pytest.fixture
def site(tmp_path):
    """Forty distributions under one entry-point name; one takes ten seconds to import."""
    site = tmp_path / "site"
    site.mkdir()
    for number in range(40):
        slow = "import time; time.sleep(10)" if number == SLOW else ""
        # Two of them use one name.
        name = f"model_{number if number != 5 else 4}"
        distribution(site, number, PLUGIN.format(number=number, slow=slow, name=name))
    return site


@pytest.fixture
def torchyard(site, tmp_path):
    def run(*words, **settings):
        environment = {**os.environ, "PYTHONPATH": str(site), **settings}
        environment["TORCHYARD_CACHE"] = str(tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-m", "torchyard", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert "Traceback" not in done.stderr
        return done

    return run


def imported(site):
    return {marker.parent.name for marker in site.glob("*/*.imported")}


@pytest.mark.slow
def test_what_is_not_asked_for_is_not_imported(site, torchyard):
    for words in (["--help"], ["plugins", "--help"], ["plugins"], ["plugins", "--json"]):
        assert torchyard(*words).returncode == 0
    assert torchyard("plugins", "show", "model", "mlp").returncode == 0
    assert imported(site) == set()
    # With torch, and in two processes, as a run has them.
    done = torchyard("check", "digits", "model=model_7", "model.width=5")
    assert done.returncode == 0, done.stderr
    assert imported(site) == {"strange_7"}


def test_all_are_listed_with_what_their_files_say(site, torchyard):
    rows = json.loads(torchyard("plugins", "model", "--json").stdout)["plugins"]
    found = {row["name"]: row for row in rows if row["status"] != "built in"}
    # Those of one name are both there, under the names of their distributions.
    names = {f"model_{number}" for number in range(40)} - {"model_4", "model_5"}
    assert set(found) == names | {"strange-4/model_4", "strange-5/model_4"}
    assert found["model_39"] == {
        "kind": "model",
        "name": "model_39",
        "summary": "The model of distribution 39.",
        "origin": "strange-39 1.39 (strange_39.models)",
        "status": "not loaded",
    }
    done = torchyard("check", "digits", "model=model_4")
    expected = "several plugins are named 'model_4': choose strange-4/model_4 or strange-5/model_4"
    assert (done.returncode, done.stderr) == (2, f"error: model: {expected}\n")
    assert imported(site) == {"strange_4", "strange_5"}


def test_a_line_of_the_list_is_a_line_where_it_is_piped(torchyard):
    printed = torchyard("plugins", COLUMNS="40").stdout
    [line] = [line for line in printed.splitlines() if "model_39" in line]
    expected = "model model_39 The model of distribution 39. strange-39 1.39 (strange_39.models)"
    assert line.split() == expected.split()


def test_a_plugin_is_shown_with_its_settings_for_machines(site, torchyard):
    shown = json.loads(torchyard("plugins", "show", "model", "model_3", "--json").stdout)
    assert imported(site) == {"strange_3"}
    width = {"name": "width", "accepts": "integer", "default": "4", "meaning": ""}
    assert shown["parameters"] == [width]
    assert [setting["name"] for setting in shown["settings"]] == [
        *("model.weights", "model.freeze", "model.freeze_epochs", "model.freeze_statistics")
    ]
    assert (shown["identity"], shown["status"]) == ("strange-3==1.3", "loaded")


def test_one_plugin_or_all_can_be_turned_off(site, torchyard):
    def status(off):
        answer = json.loads(torchyard("plugins", "--json", TORCHYARD_PLUGINS_OFF=off).stdout)
        rows = {row["name"]: row["status"] for row in answer["plugins"]}
        return rows["model_3"], rows["model_6"], rows["mlp"], answer["broken"]

    assert status("strange-3") == ("off", "not loaded", "built in", [])
    assert status("all") == ("off", "off", "built in", [])
    misspelled = {"source": "strage-3", "reason": "no such plugin (TORCHYARD_PLUGINS_OFF)"}
    assert status("strage-3, strange-6") == ("not loaded", "off", "built in", [misspelled])
    done = torchyard("check", "digits", "model=model_3", TORCHYARD_PLUGINS_OFF="strange-3")
    origin = "strange-3 1.3 (strange_3.models)"
    assert done.returncode == 2
    assert f"'model_3'.  {origin} is turned off (TORCHYARD_PLUGINS_OFF)" in done.stderr
    # What is off for one name leaves the other to whoever has it.
    done = torchyard("plugins", "show", "model", "model_4", TORCHYARD_PLUGINS_OFF="strange-5")
    assert done.stdout.startswith("model_4  model, from strange-4 ")


def test_what_is_wrong_with_an_installed_plugin_has_its_file_and_line(site, torchyard):
    for number in range(40):
        if number != 2:
            (site / f"strange_{number}-1.{number}.dist-info" / "entry_points.txt").unlink()
    file = site / "strange_2" / "models.py"
    file.write_text(file.read_text().replace("_models(", "_modles("))
    done = torchyard("plugins", "check")
    line = file.read_text().splitlines().index("def register_modles(register):") + 1
    assert done.returncode == 1
    assert done.stdout.startswith(f"{file}:{line}: there is no hook named 'register_modles'. ")


def test_names_that_only_the_import_tells_are_a_family_until_then(site, torchyard):
    text = PLUGIN.replace("Model(ModelParams)", "Loss(LossParams)").replace("Model", "Loss")
    text = text[: text.index("@hookimpl")].replace("import LossParams", "import LossParams")
    distribution(site, 40, text.format(number=40, slow="") + FAMILY.lstrip())
    rows = json.loads(torchyard("plugins", "loss", "--json").stdout)["plugins"]
    [family] = [row for row in rows if row["name"].startswith("family")]
    assert (family["name"], family["status"]) == ("family/*", "not loaded")
    assert "strange_40" not in imported(site)
    done = torchyard("check", "digits", "loss=family/3")
    assert imported(site) == {"strange_40"}
    assert "no loss named 'family/3'. Did you mean 'family/" in done.stderr
