"""The address of a tracking store: what it names, and what is wrong with one, before any work."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from torchyard.core.errors import UserError, suggestion
from torchyard.core.redaction import ESCAPES

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DATABRICKS = ("databricks", "databricks-uc", "uc")
_SQLITE_OPTIONS = {"timeout", "isolation_level", "detect_types", "check_same_thread"}
_SQLITE_OPTIONS |= {"cached_statements"}


def local_address(database: Path) -> str:
    """The address of a SQLite database in a folder of any name."""
    path = database.as_posix()
    if "%" in path or "?" in path:
        # MLflow makes the folder of an address with `sqlite:///`, and takes its text for the path.
        return "sqlite+pysqlite:///" + path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def is_server(uri: str) -> bool:
    """Whether the store is a server, which can be asked whether it answers."""
    return uri.startswith(("http://", "https://"))


def database_of(url: str) -> Path | None:
    """The file of a SQLite database; None for any other, and for one in memory."""
    match = re.match(r"sqlite(\+\w+)?:///([^?]+)", url)
    if not match or ":memory:" in match[2]:
        return None
    return Path(unquote(match[2])).absolute()


def store_folder_exists(uri: str) -> bool:
    """Whether the folder of a local store is there; True for any other store."""
    database = database_of(uri)
    return database is None or database.parent.is_dir()


def check_address(address: str, shown: str) -> None:
    """Refuse what cannot be the address of a store.

    Args:
        address: the value of MLFLOW_TRACKING_URI.
        shown: the same without a password.

    Raises:
        UserError: what is wrong with it, and how to write it.
    """
    if "//" not in address:
        shown = address = address.rpartition("@")[2]
    if problem := _problem(address):
        raise UserError(f"MLFLOW_TRACKING_URI: '{shown}': {problem}")


def _problem(address: str) -> str:
    kind, colon, _ = address.partition(":")
    scheme = kind.partition("+")[0]
    if not colon and kind in DATABRICKS:
        return ""
    if re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):\d+(/.*)?", address):
        return f"a server's address begins with http:// or https://: http://{address}"
    if scheme == "file" or not colon or "/" in kind:
        return (
            "MLflow no longer keeps runs in plain files; give sqlite:////FOLDER/mlflow.db or a "
            "server's address such as http://127.0.0.1:5000, or leave it unset."
        )
    if scheme in SERVERS:
        return _server_problem(address)
    if scheme == "sqlite":
        return _sqlite_problem(address)
    if scheme in DATABASES:
        return _driver_problem(address)
    plugins = entry_points(group="mlflow.tracking_store").names
    if scheme in DATABRICKS or kind in plugins:
        return ""
    nearby = {each: each for each in (*SERVERS, *DATABASES)} | {"postgres": "postgresql"}
    known = (*SERVERS, *DATABASES, *DATABRICKS, *sorted(plugins))
    hint = suggestion(kind.lower(), known, nearby)
    return f"no store has an address that begins with '{kind}:'.{hint}"


def _server_problem(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        reason = ESCAPES if "@" in address else error  # which quotes a part of the password
        return f"{reason}. A server's address is like http://127.0.0.1:5000."
    if not host or re.search(r"\s", address):
        return "a server's address is like http://127.0.0.1:5000."
    return ""


def _sqlite_problem(address: str) -> str:
    begins, slashes, rest = address.partition(":///")
    path, _, query = rest.partition("?")
    if not slashes:
        path = address.partition(":")[2].lstrip("/")
        return _in_memory() if not path else f"a file's address has three slashes: sqlite:///{path}"
    if path in ("", ":memory:"):
        return _in_memory()
    if path.startswith("file:"):
        return "write the path of the file: sqlite:////FOLDER/mlflow.db"
    if begins not in ("sqlite", "sqlite+pysqlite"):
        return f"MLflow opens no database by {begins}: write sqlite:///{path}"
    if not set(parse_qs(query, keep_blank_values=True)) <= _SQLITE_OPTIONS:
        return f"a '?' in the name of a folder is written %3F: sqlite:///{rest.replace('?', '%3F')}"
    literal, decoded = Path(path).parent, Path(unquote(path)).parent
    if literal.is_dir() and not decoded.is_dir():
        return f"a '%' in the name of a folder is written %25: sqlite:///{path.replace('%', '%25')}"
    return ""


def _in_memory() -> str:
    return "a database in memory keeps no record; give sqlite:////FOLDER/mlflow.db."


def _driver_problem(address: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(address)
        url.get_dialect().import_dbapi()
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        return (
            f"the driver '{missing}' is not installed here; install it, or name another one, as in "
            "postgresql+psycopg://… or mysql+pymysql://…"
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        return f"{str(error).splitlines()[0]}  (as in postgresql://USER@HOST/DATABASE)"
    return ""
