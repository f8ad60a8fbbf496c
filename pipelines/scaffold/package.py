"""The files of a new plugin: itself and its test, or a distribution to install."""

from __future__ import annotations

from pathlib import Path
from string import Template

from torchyard.core.hosting.params import KINDS

TEMPLATES = Path(__file__).parent / "templates"


def package_folder(name: str) -> Path:
    """The folder of the distribution, named as it is."""
    return Path(f"torchyard-{name.replace('_', '-')}")


def setting_of(kind: str, name: str) -> str:
    """The setting that chooses the plugin."""
    lists = {"augmentation": "augmentations", "metric": "metrics", "gate": "promote.gates"}
    return f"{lists[kind]}=[{name}]" if kind in lists else f"{kind}={name}"


def plugin_files(
    kind: str, name: str, class_name: str, plugin: str, *, package: bool
) -> dict[Path, str]:
    """The files and their texts, by their paths within the folder to write them to.

    Args:
        kind: of the plugin.
        name: of the plugin.
        class_name: the plugin's class.
        plugin: the text of its module.
        package: whether it is a distribution; else the plugin and its test lie side by side.
    """
    top, module, takes_folder = package_folder(name), f"torchyard_{name}", kind == "dataset"
    values = {
        "kind": kind,
        "name": name,
        "class_name": class_name,
        "base": KINDS[kind].__name__,
        "distribution": top.name,
        "module": module,
        "setting": setting_of(kind, name),
        "imports": "from pathlib import Path\n\n" if takes_folder else "",
        "argument": "tmp_path: Path" if takes_folder else "",
        "values": "(), tmp_path" if takes_folder else "()",
    }

    def filled(template: str) -> str:
        return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)

    if not package:
        return {Path(f"{name}.py"): plugin, Path(f"test_{name}.py"): filled("test_file.txt")}
    return {
        top / "pyproject.toml": filled("pyproject.txt"),
        top / module / "__init__.py": f'"""The {kind} `{name}` for torchyard."""\n',
        top / module / f"{name}.py": plugin,
        top / "tests" / f"test_{name}.py": filled("test_package.txt"),
        top / "README.md": filled("readme.txt"),
    }
