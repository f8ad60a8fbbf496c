"""`torchyard plugins check` as a user meets it: what it prints, and its exit status."""

import os
import subprocess
import sys

HEAVY = {"torch", "mlflow", "prefect", "numpy"}


def check(folder, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "TORCHYARD_PLUGINS"}
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "torchyard",
            "plugins",
            "check",
        ],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    assert [line for line in lines if line not in times] == []
    assert not HEAVY & {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    return done.returncode, done.stdout.splitlines()


def test_all_is_right(tmp_path):
    status, [line] = check(tmp_path)
    assert status == 0
    assert line.startswith("Right: ")


def test_what_is_wrong_is_printed_and_is_exit_status_1(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("\nimport no_such_module")
    missing = tmp_path / "missing"
    folders = os.pathsep.join(map(str, (tmp_path, missing)))
    assert check(tmp_path, TORCHYARD_PLUGINS=folders) == (
        1,
        [
            f"{file}:2: failed to load: ModuleNotFoundError: No module named 'no_such_module'",
            f"{missing}: failed to load: no such folder (TORCHYARD_PLUGINS)",
        ],
    )


def test_the_folder_torchyard_plugins_is_loaded_by_itself_and_only_once(tmp_path):
    folder = tmp_path / "torchyard_plugins"
    folder.mkdir()
    (folder / "mine.py").write_text("1 / 0")
    for name in ("test_mine.py", "conftest.py"):  # tests are no plugins
        (folder / name).write_text("raise SystemExit")
    expected = [f"{folder / 'mine.py'}:1: failed to load: ZeroDivisionError: division by zero"]
    assert check(tmp_path) == (1, expected)
    assert check(tmp_path, TORCHYARD_PLUGINS=str(folder)) == (1, expected)
