"""What the errors of a store mean: one message, and whether it may be tried again."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.redaction import ESCAPES, redacted, redacted_uri
from torchyard.core.tracking.location.address import is_server

# A pattern of a store's error, the error raised for it, and its message.
_TROUBLES: tuple[tuple[str, type[UserError | RunError], str], ...] = (
    ("database is locked", StoreUnavailableError, "is locked by another program"),
    (
        "disk is full|No space left|quota exceeded",
        StoreUnavailableError,
        "has no space left on its disk",
    ),
    ("readonly database|Permission denied|Read-only", StoreUnavailableError, "cannot be written"),
    ("unable to open database", StoreUnavailableError, "cannot be written"),
    (
        "out-of-date database schema|Can't locate revision",
        UserError,
        "was made by another version of MLflow; back it up, then 'mlflow db upgrade {uri}'",
    ),
    ("file is not a database|malformed", UserError, "is not a readable MLflow database"),
    ("^Invalid url", UserError, f"is no address: {ESCAPES}"),
    ("file lock .* could not be acquired", StoreUnavailableError, "is busy with another start"),
    ("too many ([45][0-9][0-9]) error", StoreUnavailableError, "answers with status {0}"),
    (
        "Failed to resolve|Name or service not known",
        StoreUnavailableError,
        "does not answer: its name is not known here",
    ),
    (r"(certificate verify failed[^()\[\]]*\w)", StoreUnavailableError, "does not answer: {0}"),
    ("Max retries exceeded|Connection|[Tt]imed out", StoreUnavailableError, "does not answer"),
)
# What MLflow's server answers where it does not refuse for good.
_PASSING = {"TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED"}
_PASSING |= {"RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what the store raises into one message; other exceptions pass.

    Raises:
        UserError: the store is of another version of MLflow, or not a store at all.
        StoreUnavailableError: it is locked, full, read-only or out of reach.
        RunError: it refused.
    """
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ParseError, sqlite3.Error, OSError) as error:
        text = redacted(str(error).strip() or type(error).__name__)
        says = f"refused: {text.splitlines()[0][:300]}"
        kind: type[UserError | RunError] = RunError
        details = text
        for sign, known, meaning in _TROUBLES:
            if found := re.search(sign, text):
                kind, says = known, meaning.format(*found.groups(), uri=redacted_uri(uri)) + "."
                details = ""  # it says as much, in MLflow's words
                break
        else:
            local = isinstance(error, OSError) and error.filename is not None
            if is_server(uri) and not local and not _is_refusal(error):
                kind, says = StoreUnavailableError, f"answers, but not as MLflow: {_answer(text)}."
                details = ""  # a whole page, as a rule
        message = f"The MLflow store {redacted_uri(uri)} {says}"
        raise (kind(message, details) if issubclass(kind, RunError) else kind(message)) from error


def _is_refusal(error: Exception) -> bool:
    """Whether an error is MLflow's own answer, and not to be had otherwise by waiting."""
    from mlflow.exceptions import RestException
    from mlflow.protos.databricks_pb2 import ErrorCode

    code = error.json.get("error_code") if isinstance(error, RestException) else None
    return code in ErrorCode.keys() and code not in _PASSING  # noqa: SIM118 - no mapping


def _answer(text: str) -> str:
    """What answered, in a line: the status, and the beginning of the body."""
    status = re.search(r"(?:error code|status) (\d{3})|(\d{3}) (?:Client|Server) Error", text)
    body = re.search(r"Response(?: body| text)?: '?(.*)", text, re.DOTALL)
    words = re.sub(r"<(script|style).*?</\1>|<[^>]*>|\s+", " ", body[1] if body else text)
    shown = " ".join(words.split()).rstrip("'")[:120] or "nothing"
    return f"status {status[1] or status[2]}, {shown}" if status and body else shown


def check_answer(found: object, expected: object) -> None:
    """Raise OSError unless an answer names what was asked for: MLflow takes an empty one for good.

    A proxy or a captive portal in front of it may answer anything.
    """
    if found != expected:
        raise OSError(f"status 200, with {found!r} in place of {expected!r}")
