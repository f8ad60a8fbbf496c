"""Whether a server answers at an address: asked over plain HTTP, before any client is imported."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from email.message import Message
from urllib.parse import urlsplit

ANSWER_SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether anything answers there at once, be it with a refusal."""
    try:
        fetch(url, ANSWER_SECONDS)
    except (OSError, http.client.HTTPException):
        return False
    return True


def fetch(url: str, timeout: float) -> tuple[Message, bytes]:
    """Headers and body of any HTTP answer, also a refusing one: something answers there.

    Raises:
        TimeoutError: nothing does within `timeout` seconds.
        OSError, http.client.HTTPException: nothing does, or it speaks no HTTP.
    """
    parts = urlsplit(url)
    # A proxy would not know this machine's own address; urllib takes a password for the port.
    proxies = urllib.request.ProxyHandler({} if parts.hostname == "127.0.0.1" else None)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with urllib.request.build_opener(proxies).open(address, timeout=timeout) as answer:
            return answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.headers, refusal.read()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # its certificate is for the client to judge
            return Message(), b""
        if isinstance(error.reason, TimeoutError):
            raise error.reason from error
        raise
