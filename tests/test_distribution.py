"""What is published: dependencies, archive and wheel, and the wheel in a fresh environment."""

import ast
import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("core", "pipelines", "plugins")
UV = Path(sys.executable).with_name("uv")
# Declared, though nothing imports it.
INDIRECT = {
    "whenever": "Prefect's scheduler needs a newer one than it asks for",
}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """The third-party modules that are imported, each with one of the files that do it."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    found = {}
    for file in [*files, *(ROOT / "src" / "torchyard").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: file for name in names}
    return {
        name: file
        for name, file in found.items()
        if name not in sys.stdlib_module_names and name != "torchyard"
    }


def test_every_import_is_declared_and_everything_declared_is_imported():
    def names(lines):
        return {normalized(re.match(r"[\w.-]+", line)[0]) for line in lines}

    declared = names(PROJECT["dependencies"])
    extras = set().union(*map(names, PROJECT["optional-dependencies"].values()))
    providers = packages_distributions()
    unused, undeclared = set(declared), []
    for module, file in imported().items():
        provided = {normalized(name) for name in providers[module]}
        if not provided & (declared | extras):
            undeclared.append((module, str(file)))
        unused -= provided
    assert undeclared == []
    assert unused <= INDIRECT.keys()


# ---- archive and wheel

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Settings for processes that must not see this clone, nor this user's services."""
    home = tmp_path_factory.mktemp("home")
    hidden = ("PYTHONPATH", "TORCHYARD_PLUGINS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return kept | {
        "PREFECT_HOME": str(home / "prefect"),
        "TORCHYARD_CACHE": str(home / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
    }


def run(environment, *command, cwd, status=0, **settings):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == status, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory, environment):
    """The archive, the wheel that was built from it, and the wheel of this folder."""
    if not UV.exists():
        pytest.skip("uv builds the wheels, and is not beside this Python")
    folder, direct = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("direct")
    run(environment, UV, "build", "-q", "-o", folder, cwd=ROOT)
    run(environment, UV, "build", "-q", "--wheel", "-o", direct, cwd=ROOT)
    [archive], [wheel], [other] = (
        folder.glob("*.tar.gz"),
        folder.glob("*.whl"),
        direct.glob("*.whl"),
    )
    return archive, wheel, other


def contents(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        assert len(names) == len(set(names))
        return {name: opened.read(name) for name in names}


def files_of_the_three_folders():
    return {
        str(file.relative_to(ROOT))
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@slow
def test_the_wheel_holds_torchyard_alone_and_all_of_it(built):
    files = contents(built[1])
    info = f"torchyard-{PROJECT['version']}.dist-info"
    assert {name.partition("/")[0] for name in files} == {"torchyard", info}
    expected = {f"torchyard/{name}" for name in files_of_the_three_folders()}
    names = (file.name for file in (ROOT / "src" / "torchyard").iterdir() if file.is_file())
    expected |= {f"torchyard/{name}" for name in names}
    assert {name for name in files if not name.startswith(info)} == expected
    assert {"torchyard/py.typed", "torchyard/core/report/templates/run.html"} <= expected


@slow
def test_the_wheel_describes_itself(built):
    files = contents(built[1])
    info = f"torchyard-{PROJECT['version']}.dist-info"
    metadata = email.message_from_bytes(files[f"{info}/METADATA"])
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["License-Expression"] == "MIT"
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = metadata.get_payload(decode=True).decode().strip()
    assert readme == (ROOT / "README.md").read_text("utf-8").strip()
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    extras = PROJECT["optional-dependencies"]
    wanted = len(PROJECT["dependencies"]) + sum(map(len, extras.values()))
    assert len(metadata.get_all("Requires-Dist")) == wanted
    assert sorted(metadata.get_all("Provides-Extra")) == sorted(extras)
    [line] = [
        line
        for line in files[f"{info}/entry_points.txt"].decode().splitlines()
        if line.startswith("torchyard")
    ]
    assert line == "torchyard = torchyard.pipelines.__main__:main"


@slow
def test_the_archive_holds_each_file_once_and_makes_the_same_wheel(built):
    archive, wheel, direct = built
    with tarfile.open(archive) as opened:
        members = [member for member in opened.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in members)  # no link: not every system can unpack one
    names = [member.name.partition("/")[2] for member in members]
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} >= {"src", "README.md", "LICENSE"}
    assert not {name.partition("/")[0] for name in names} & {*FOLDERS, "tests"}
    assert contents(wheel) == contents(direct)


# ---- installed


@pytest.fixture(scope="module")
def fresh(built, environment, tmp_path_factory):
    """The executables of an environment with this one's packages, but for torchyard."""
    folder = tmp_path_factory.mktemp("fresh")
    run(environment, UV, "venv", "-q", "--python", sys.executable, folder, cwd=folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # A path in such a file is not searched for others: the editable torchyard is not found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    before = {file.name for file in packages.iterdir()}
    install(environment, folder / "bin", built[1])
    gained = {file.name for file in packages.iterdir()} - before
    assert gained == {"torchyard", f"torchyard-{PROJECT['version']}.dist-info"}
    return folder / "bin"


def install(environment, binaries, *what, verb="install"):
    options = ["--no-deps", "--no-index"] if verb == "install" else []
    python = ("--python", binaries / "python")
    run(environment, UV, "pip", verb, "-q", *python, *options, *what, cwd=binaries)


@pytest.fixture
def project(tmp_path):
    """A user's folder with packages of its own that are called as torchyard's folders are."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a user\\'s package')\n")
    return tmp_path


@slow
def test_a_run_beside_packages_called_as_torchyards_folders(fresh, environment, project):
    path = {"PYTHONPATH": str(project)}
    where = "import torchyard.core.errors as e; print(e.__file__)"
    printed = run(environment, fresh / "python", "-c", where, cwd=project, **path)
    assert printed.startswith(str(fresh.parent))
    printed = run(environment, fresh / "torchyard", "plugins", "dataset", cwd=project, **path)
    assert any(line.split()[:2] == ["dataset", "digits"] for line in printed.splitlines())
    words = ("run", "digits", "train.epochs=2")
    printed = run(environment, fresh / "torchyard", *words, cwd=project, **path)
    assert "·digits #1" in printed
    assert (project / "mlruns" / "mlflow.db").exists()


def wheel_with_core(folder):
    """A distribution of another's with a package called `core`."""
    info = "other-1.0.dist-info"
    files = {
        "core/__init__.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = folder / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for name, text in files.items():
            opened.writestr(name, text)
    return wheel


@slow
def test_a_distribution_with_a_package_core_comes_and_goes(fresh, environment, tmp_path):
    [packages] = fresh.parent.glob("lib/python*/site-packages")

    def own():
        files = (file for file in packages.rglob("*") if "__pycache__" not in file.parts)
        return {file for file in files if "torchyard" in str(file.relative_to(packages))}

    before = own()
    install(environment, fresh, wheel_with_core(tmp_path))
    both = "import core, torchyard.core as ours; print(core is ours)"
    assert run(environment, fresh / "python", "-c", both, cwd=tmp_path) == "False\n"
    install(environment, fresh, "other", verb="uninstall")
    assert own() == before
    printed = run(environment, fresh / "torchyard", "plugins", "check", cwd=tmp_path)
    assert printed.startswith("Valid: ")


@slow
def test_a_projects_tests_use_its_own_core_and_the_test_kit(fresh, environment, project):
    (project / "core" / "__init__.py").write_text("WIDTH = 3\n")
    (project / "test_mine.py").write_text(
        "from core import WIDTH\n"
        "from torchyard.plugins.losses import Focal\n"
        "from torchyard.testing import assert_loss_plugin\n\n\n"
        "def test_focal():\n    assert_loss_plugin(Focal(), num_classes=WIDTH)\n"
    )
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in run(environment, fresh / "python", *words, cwd=project)
