"""Secrets kept out of everything that is printed or recorded.

Known are the passwords and tokens with which MLflow, Prefect and proxies are reached, and each
that a configuration refers to (`keep_secret`). `redacted` is called where a text leaves: in the
messages of errors, log records, the terminal's streams, and all that a run records.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
ESCAPES = "in a name or password, '/' is written %2F, '@' %40 and ':' %3A"
SHORTEST = 4  # a shorter one is hidden in addresses alone: many words have it in them

NAMES = "password|passwd|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?"

_ADDRESSES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI", "PREFECT_API_URL"),
    *("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
)
_SECRETS = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN"),
    *("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY"),
    *("AZURE_STORAGE_CONNECTION_STRING", "TORCHYARD_NODES_KEY"),
)

# A name and a password end at the last "@", for the password may have "/", "@" and ":" in it;
# "///" begins the path of a file. In a text an address ends at a space or a quote.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?!/)(.*)@(.*)", re.DOTALL)
_IN_TEXT = re.compile(
    r"(\bhttps?://)(?!/)[^\s'\"<>`]*@|(\b[A-Za-z][A-Za-z0-9+.-]*://)(?!/)[^\s'\"<>`@:]*:[^\s'\"<>`]*@"
)
_IN_QUERY = re.compile(rf"(?i)((?:[?&]|&amp;)[\w.-]*(?:{NAMES}|sig|signature)=)[^&\s'\"<>`]+")

_kept: set[str] = set()


def keep_secret(secret: str) -> None:
    """Hide this text from now on, wherever it would be printed or recorded."""
    _kept.add(secret)


def redacted(text: str) -> str:
    """The text without the secrets that this process knows, and without passwords in addresses."""
    text = without_passwords(text)
    known = _pattern(frozenset((*_kept, *_environment_secrets())))
    return known.sub(HIDDEN, text) if known else text


def without_passwords(text: str) -> str:
    """The text without user names and passwords in its addresses."""
    text = _IN_TEXT.sub(lambda found: found[1] or found[2], text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text)


def redacted_uri(uri: str) -> str:
    """An address without the user name and password in it."""
    match = _ADDRESS.fullmatch(uri)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", match[1] + match[3] if match else uri)


def redact_logs() -> None:
    """Redact every log record of this process from now on, whichever library makes it."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = make(*arguments, **named)
        try:
            text = made.getMessage()
        except Exception:  # its arguments do not fit: logging itself says so
            return made
        if (clean := redacted(text)) != text:
            made.msg, made.args = clean, ()
        if made.exc_info:  # handlers take the text where there is one
            trace = logging.Formatter().formatException(made.exc_info)
            if (clean := redacted(trace)) != trace:
                made.exc_info, made.exc_text = None, clean
        return made

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def redact_output() -> None:
    """Redact from now on what this process prints, tracebacks included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _RedactedStream):
            setattr(sys, name, _RedactedStream(stream))


class _RedactedStream:
    """A stream of texts in front of another one, which has all its other attributes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def _environment_secrets() -> Iterator[str]:
    for name in _ADDRESSES:
        if match := _ADDRESS.fullmatch(os.environ.get(name, "")):
            user, colon, password = match[2].partition(":")
            yield password if colon else user
            yield from re.split("[/@:?#]", match[2])[1:]  # parsers quote what they take for a port
            yield base64.b64encode(unquote(match[2]).encode()).decode()  # as HTTP sends it
    for name in _SECRETS:
        if value := os.environ.get(name, ""):
            yield value
            yield value.partition(":")[2]  # an authentication string has a name before it


@functools.lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """What finds the secrets, also as they are written in addresses, JSON, Python and HTML."""
    forms: set[str] = set()
    for secret in secrets:
        lines = [secret, *secret.splitlines()]  # a key of several lines is printed line by line
        for text in {each for line in lines for each in (line.strip(), unquote(line.strip()))}:
            forms |= {
                *(text, quote(text), quote(text, safe=""), quote_plus(text), html.escape(text)),
                *(json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]),
                *(repr(text)[1:-1], base64.b64encode(text.encode()).decode()),
            }
    known = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None
