"""The files around a new plugin: its test, and those of a distribution to install."""

from __future__ import annotations

from pathlib import Path

from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import ENTRY_POINT_GROUP


def file_test(kind: str, name: str, class_name: str) -> str:
    """The test of a plugin file in the same folder."""
    base = KINDS[kind].__name__
    assignment = (
        f'{class_name} = plugin_in_file(Path(__file__).with_name("{name}.py"), {base}, "{name}")'
    )
    return f'''"""Tests of the {kind} `{name}`, with torchyard\'s own kit."""

from pathlib import Path

from torchyard import {base}
from torchyard.testing import assert_{kind}_plugin, plugin_in_file

{assignment}
{_test_function(kind, class_name)}'''


def package_folder(folder: Path, name: str) -> Path:
    """The folder of the distribution."""
    return folder / f"torchyard-{name.replace('_', '-')}"


def package_files(kind: str, name: str, class_name: str, plugin: str) -> dict[Path, str]:
    """The files of a distribution with one plugin, relative to where it is written.

    Args:
        kind: of the plugin.
        name: of the plugin.
        class_name: the plugin's class.
        plugin: the text of its module.
    """
    top, module = package_folder(Path(), name), f"torchyard_{name}"
    imports = "from pathlib import Path\n\n" if kind == "dataset" else ""
    key = f"augmentations=[{name}]" if kind == "augmentation" else f"{kind}={name}"
    return {
        top / "pyproject.toml": f'''[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{top.name}"
version = "0.1.0"
description = "The {kind} `{name}` for torchyard"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["torchyard"]

# torchyard finds the plugin by this entry.
[project.entry-points.{ENTRY_POINT_GROUP}]
{name} = "{module}.{name}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
''',
        top / module / "__init__.py": f'"""The {kind} `{name}` for torchyard."""\n',
        top / module / f"{name}.py": plugin,
        top
        / "tests"
        / f"test_{name}.py": f'''"""Tests of the {kind} `{name}`, with torchyard\'s own kit."""

{imports}from torchyard.testing import assert_{kind}_plugin

from {module}.{name} import {class_name}
{_test_function(kind, class_name)}''',
        top / "README.md": f"""# {top.name}

The {kind} `{name}` for torchyard.

```sh
python -m pip install -e .
python -m pytest
torchyard plugins check
torchyard run digits '{key}'
```
""",
    }


def _test_function(kind: str, class_name: str) -> str:
    argument, values = ("tmp_path: Path", "(), tmp_path") if kind == "dataset" else ("", "()")
    return f"""

def test_it_does_what_a_{kind}_must({argument}) -> None:
    assert_{kind}_plugin({class_name}{values})
"""
