"""Keeps `import core` from making a second copy where the clone is on the import path."""


def check_import_name(name: str, file: str) -> None:
    """Refuse `import core`: each folder's `__init__.py` calls this with its own name and file.

    Raises:
        ImportError: the folder is not imported as a part of `torchyard`.
    """
    if not name.startswith("torchyard."):
        raise ImportError(
            f"'{name}' is {file}, a folder of torchyard: write 'torchyard.{name}', and in a "
            "plugin 'from torchyard import ModelParams, hookimpl'",
            name=name,
            path=file,
        )
