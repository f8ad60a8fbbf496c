"""`plugins new --package`: what is written installs into a fresh environment, and trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchyard.core.config.schema import SINGLE_KINDS
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.pipelines.scaffold.new_plugin import write

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", HOOKS)
def test_a_package_that_is_there_is_left_alone(tmp_path, kind):
    file, *_ = write(kind, "mine", tmp_path, package=True)
    assert file == tmp_path / "torchyard-mine" / "pyproject.toml"
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="torchyard-mine exists already, and is not changed"):
        write(kind, "mine", tmp_path, package=True)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.long
@pytest.mark.timeout(900)
def test_packages_of_every_kind_install_into_a_fresh_environment_and_train(tmp_path):
    fresh = tmp_path / "fresh" / "bin"
    settings = ("PYTHONPATH", "TORCHYARD_PLUGINS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
    environment = {key: value for key, value in os.environ.items() if key not in settings}
    environment |= {
        "TORCHYARD_CACHE": str(tmp_path / "cache"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "UV_PYTHON_DOWNLOADS": "never",
    }

    def run(*command, cwd=tmp_path):
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("a fresh environment is made by uv, which is not beside this Python")
    run(uv, "venv", "-q", "--python", sys.executable, fresh.parent)
    install = (uv, "pip", "install", "-q", "--python", fresh / "python")
    run(*install, "-r", ROOT / "requirements.lock")
    run(*install, "--no-deps", ROOT)  # a copy, not the checkout itself
    for kind in HOOKS:
        run(fresh / "torchyard", "plugins", "new", kind, f"my_{kind}", "--package")
    packages = sorted(tmp_path.glob("torchyard-my-*"))
    assert len(packages) == len(HOOKS)
    run(*install, *packages)
    for package in packages:
        # Elsewhere than where the plugin lies: the installed one is tested.
        run(fresh / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests")
    assert run(fresh / "torchyard", "plugins", "check").startswith("Valid: ")
    rows = run(fresh / "torchyard", "plugins").splitlines()
    for kind in HOOKS:
        [row] = [row for row in rows if row.split()[:2] == [kind, f"my_{kind}"]]
        assert f"torchyard-my-{kind} 0.1.0 (torchyard_my_{kind}.my_{kind})" in row
    chosen = [f"{kind}=my_{kind}" for kind in SINGLE_KINDS]
    chosen += ["augmentations=[my_augmentation]", "promote.model=m", "promote.gates=[my_gate]"]
    chosen.append("metrics=[my_metric]")
    printed = run(fresh / "torchyard", "run", *chosen, "train.epochs=2")
    assert "my_model·my_optimizer·my_dataset #1" in printed
    assert "my_gate: " in printed
