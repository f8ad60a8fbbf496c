"""Whether what answers at an address is Prefect's API; if not, what to write instead."""

from __future__ import annotations

import contextlib
import json
import ssl
from urllib.parse import urlsplit

import httpx

from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import check_proxy
from torchyard.core.redaction import ESCAPES, redacted_uri
from torchyard.pipelines.services.prefect_settings import setting
from torchyard.pipelines.services.server.access import authorization

SECONDS = 30.0  # until a Prefect that does not answer is given up


def patience() -> float:
    """How long to wait for an answer, in seconds: Prefect's own setting where that is set."""
    chosen = setting("PREFECT_API_REQUEST_TIMEOUT", "api", "request_timeout")
    with contextlib.suppress(ValueError):
        return float(chosen or SECONDS)
    return SECONDS


def check_prefect(api_url: str, timeout: float | None = None) -> None:
    """Ask the Prefect server at an address that the user named.

    Raises:
        UserError: the address is wrong, something else answers, or it wants a password.
        RunError: nothing answers within `timeout` seconds (by default `patience()`), or Prefect
            cannot at the moment.
    """
    shown = redacted_uri(api_url)
    expected = "PREFECT_API_URL is the address of a Prefect API, such as http://HOST:4200/api"
    try:
        parts = urlsplit(api_url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"'{shown}' is not an address: {expected}.")
    check_proxy(api_url)
    seconds = patience() if timeout is None else timeout
    with httpx.Client(
        verify=_certificates(), headers=_credentials(), timeout=seconds, follow_redirects=True
    ) as client:
        try:
            answer = client.get(f"{api_url}/health")
            if _is_true(answer):
                answer = client.get(f"{api_url}/admin/version")
                if answer.status_code not in (401, 403):
                    return
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_answer(error, api_url, seconds, expected) from error
        if answer.status_code in (401, 403):
            raise UserError(
                f"The Prefect server at {shown} refuses ({answer.status_code}): it asks for a "
                "password in PREFECT_API_AUTH_STRING, as user:password, or a key in "
                "PREFECT_API_KEY."
            )
        kind = answer.headers.get("content-type", "no type").partition(";")[0]
        what = f"{answer.status_code} {answer.reason_phrase}, {kind}"
        if answer.status_code >= 500:
            raise RunError(f"The Prefect server at {shown} cannot answer now ({what}).")
        with contextlib.suppress(httpx.HTTPError):
            below = f"{api_url.rstrip('/')}/api"
            if not parts.path.rstrip("/").endswith("/api") and _is_true(
                client.get(f"{below}/health")
            ):
                raise UserError(f"PREFECT_API_URL: {shown} lacks its end; write {shown}/api.")
    raise UserError(f"What answers at {shown} is not Prefect ({what}): {expected}.")


def _no_answer(error: Exception, api_url: str, seconds: float, expected: str) -> Exception:
    shown, parts = redacted_uri(api_url), urlsplit(api_url)
    reason = str(error)
    if isinstance(error, httpx.InvalidURL) and "@" in api_url:
        reason = ESCAPES  # the error quotes a part of the password
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.TooManyRedirects):
        return UserError(f"'{shown}' cannot be asked ({reason}): {expected}.")
    if isinstance(error, httpx.ProxyError):
        return RunError(f"The proxy for {shown} refuses: {reason}.")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return UserError(
            f"The certificate of {shown} is not trusted: name the file of its issuer's in "
            "PREFECT_API_SSL_CERT_FILE."
        )
    if "SSL" in reason and parts.scheme == "https":
        return UserError(f"What answers at {shown} speaks no TLS: write http:// for https://.")
    if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError):
        hint = " Perhaps it is to be https://." if parts.scheme == "http" else ""
        return UserError(f"What answers at {shown} speaks no HTTP: {expected}.{hint}")
    if isinstance(error, httpx.TimeoutException):
        what = f"has not answered for {seconds:g} seconds"
    elif any(sign in reason for sign in ("Name or service", "name resolution", "nodename")):
        what = f"cannot be found: no host is named '{parts.hostname}'"
    else:
        what = "does not answer"
    return RunError(
        f"The Prefect server at {shown} {what}. Start it, or name another with PREFECT_API_URL."
    )


def _is_true(answer: httpx.Response) -> bool:
    with contextlib.suppress(ValueError):
        return answer.status_code == 200 and json.loads(answer.content) is True
    return False


def _credentials() -> dict[str, str]:
    headers: dict[str, str] = {}
    with contextlib.suppress(ValueError, TypeError):
        own = setting("PREFECT_CLIENT_CUSTOM_HEADERS", "client", "custom_headers")
        headers |= {str(name): str(value) for name, value in json.loads(own or "{}").items()}
    if secret := setting("PREFECT_API_AUTH_STRING", "api", "auth_string"):
        headers |= authorization(secret)
    elif key := setting("PREFECT_API_KEY", "api", "key"):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _certificates() -> ssl.SSLContext | bool:
    unchecked = setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "api", "tls_insecure_skip_verify")
    if str(unchecked).lower() in ("1", "true", "yes", "on", "t", "y"):
        return False
    file = setting("PREFECT_API_SSL_CERT_FILE", "api", "ssl_cert_file")
    try:
        return ssl.create_default_context(cafile=file) if file else True
    except OSError as error:
        raise UserError(f"PREFECT_API_SSL_CERT_FILE: {file} cannot be read: {error}") from error
