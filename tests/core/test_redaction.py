"""Secrets are hidden wherever something is printed or recorded, and nothing else is."""

import base64
import io
import json
import logging
import sys
import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchyard.core import redaction
from torchyard.core.errors import RunError, UserError, without_secrets
from torchyard.core.redaction import keep_secret, redacted, redacted_uri, without_passwords

PASSWORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=4)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_kept", set())


@given(PASSWORDS)
@example("hunter2")
@example("a/b@c:d")
@example("a%2Fb%40c")
@example("p'a\"s\\s")
@example("пароль")
def test_the_password_of_an_address_is_hidden_however_it_is_written(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"https://me:{password}@host:5000/x")
        assert redacted_uri(f"https://me:{password}@host:5000/x") == "https://host:5000/x"
        for written in (
            *(password, quote(password), quote(password, safe=""), repr(password)[1:-1]),
            *(json.dumps(password)[1:-1], base64.b64encode(password.encode()).decode()),
        ):
            assert written not in redacted(f"<<{written}>> and {written}") or written in "<> and *"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://me@host/p", "http://host/p"),
        ("http://me:pw@host/p?q=1", "http://host/p?q=1"),
        ("http://me:p/w@host", "http://host"),
        ("http://me:p@w@host", "http://host"),
        ("http://me:p:w#?@host:1/p", "http://host:1/p"),
        ("postgresql+psycopg2://u:p%40w@host/db", "postgresql+psycopg2://host/db"),
        ("postgresql://host/db?user=u&password=pw", "postgresql://host/db?user=u&password=***"),
        ("https://host/a?X-Amz-Signature=abc&b=1", "https://host/a?X-Amz-Signature=***&b=1"),
        ("https://host/a?b=1&amp;token=abc&amp;c=2", "https://host/a?b=1&amp;token=***&amp;c=2"),
        ("https://host/a?se=2027&sig=abc%3D", "https://host/a?se=2027&sig=***"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_is_shown_without_user_and_password(address: str, shown: str) -> None:
    assert redacted_uri(address) == shown
    text = f"asked {address} and (maybe) mailed a@b.org"
    assert redacted(text) == text.replace(address, shown)


def test_what_only_looks_like_a_secret_stays() -> None:
    for text in (
        "https://host/page and me@example.org",
        "git+ssh://git@github.com/a/b.git",
        "s3://bucket/a@b",
        "12:30 @ home, loss 0.5",
    ):
        assert without_passwords(text) == redacted(text) == text


def test_errors_show_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    keep_secret("hunter2hunter2")
    text = "cannot log in with hunter2hunter2"
    assert UserError([text]).problems == [str(UserError(text))] == ["cannot log in with ***"]
    failed = RunError(text, details=f"Traceback: {text}")
    assert (str(failed), failed.details) == ("cannot log in with ***", f"Traceback: {failed}")

    class OddError(Exception):
        def __repr__(self) -> str:
            return "OddError(hunter2hunter2)"

    harmless = ValueError("no secret in it")
    assert without_secrets(harmless) is harmless
    for error in (
        OddError("no secret in it"),
        ValueError(text),
        KeyError({"token": "hunter2hunter2"}),
    ):
        clean = without_secrets(error)
        shown = "".join(traceback.format_exception(clean)) + clean.details  # type: ignore[attr-defined]
        assert isinstance(clean, RunError)
        assert type(error).__name__ in str(clean)
        assert "hunter2" not in shown


def test_logs_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    make = logging.getLogRecordFactory()
    stream = io.StringIO()
    logger = logging.Logger("ours or any library's")
    logger.addHandler(logging.StreamHandler(stream))
    try:
        redaction.redact_logs()
        redaction.redact_logs()  # does nothing more
        keep_secret("hunter2hunter2")
        logger.warning("%s and %d, %r", "hunter2hunter2", 3, {"token": "hunter2hunter2"})
        logger.warning("plain %s", "text")
        try:
            raise ValueError("with hunter2hunter2") from KeyError("hunter2hunter2")
        except ValueError:
            logger.exception("It failed")
    finally:
        logging.setLogRecordFactory(make)
    text = stream.getvalue()
    assert "hunter2" not in text
    assert text.startswith("*** and 3, {'token': '***'}\nplain text\nIt failed\nKeyError: ")
    assert "ValueError: with ***" in text


def test_output_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redaction.redact_output()
    keep_secret("hunter2hunter2")
    print("the token is hunter2hunter2", flush=True)
    sys.stdout.writelines(["a hunter2hunter2\n"])
    try:
        raise ValueError("hunter2hunter2")
    except ValueError:
        traceback.print_exc()
    assert sys.stdout.encoding
    printed = capsys.readouterr()
    assert printed.out == "the token is ***\na ***\n"
    assert printed.err.endswith("ValueError: ***\n")


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "hunter2", "hunter2"),
        ("MLFLOW_TRACKING_TOKEN", "hunter2", "hunter2"),
        ("PREFECT_API_KEY", "pnu_123", "pnu_123"),
        ("PREFECT_API_AUTH_STRING", "admin:hunter2", "hunter2"),
        ("PREFECT_API_URL", "http://me:hunter2@host/api", "hunter2"),
        ("http_proxy", "http://me:hunter2@proxy:3128", "hunter2"),
        ("MLFLOW_TRACKING_URI", "http://hunter2@host", "hunter2"),
        ("MLFLOW_TRACKING_URI", "http://me:correct/horse@host", "horse"),  # as a port, say
        ("MLFLOW_TRACKING_URI", "http://me:hunter2@host", "bWU6aHVudGVyMg=="),  # as HTTP sends it
    ],
)
def test_the_secrets_of_our_tools_are_known(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, hidden: str
) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"it says {hidden}!") == "it says ***!"


def test_a_key_of_several_lines_is_hidden_line_by_line() -> None:
    keep_secret("-----BEGIN KEY-----\nMIIEvQIBADAN\nabcdefgh\n-----END KEY-----\n")
    assert redacted("line 2 is MIIEvQIBADAN,\n  abcdefgh") == "line 2 is ***,\n  ***"


def test_a_secret_of_a_few_letters_leaves_words_alone() -> None:
    keep_secret("a")
    keep_secret("")
    assert redacted("banana") == "banana"
