"""The proxies of the environment: this machine's own servers are never asked through one.

Every library reads the variables in a way of its own, and some fail at one that they cannot use,
though they need no proxy for the server they ask. So the variables are put right, once for this
process and those that it starts.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from importlib.util import find_spec
from urllib.parse import urlsplit

from torchyard.core.errors import UserError
from torchyard.core.redaction import redacted_uri

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SOCKS_MODULES = ("socksio", "socks", "python_socks")  # of httpx, requests and websockets

_unusable: dict[str, str] = {}  # by scheme, or "all": the proxy, and why it cannot be used


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def settle_proxies() -> list[str]:
    """Take this machine out of the proxies' reach, and unset proxies that cannot be used.

    Returns:
        The proxies that are not used, each with the reason, in one line.
    """
    proxies = urllib.request.getproxies_environment()
    for scheme in ("http", "https", "all"):
        if (proxy := proxies.get(scheme)) and (reason := _fault(proxy)):
            name = f"{scheme}_proxy"
            _unusable[scheme] = f"{name}={redacted_uri(proxy)} cannot be used: {reason}"
            for variable in [each for each in os.environ if each.lower() == name]:
                del os.environ[variable]
    if proxies:
        hosts = [*_hosts(proxies.get("no", "")), *LOOPBACK]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(hosts))
    needless = proxies.get("http") and proxies.get("https")
    return [text for scheme, text in _unusable.items() if not (scheme == "all" and needless)]


def check_proxy(url: str) -> None:
    """Refuse a server that can only be asked through a proxy that cannot be used.

    Raises:
        UserError: with the proxy and the reason.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return
    reason = _unusable.get(parts.scheme) or _unusable.get("all")
    if reason and not urllib.request.getproxies_environment().get(parts.scheme):
        raise UserError(f"{reason} Asked for: {parts.scheme}://{host}.")


ANSWER_SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether anything answers there at once, be it with a refusal."""
    try:
        http_get(url, ANSWER_SECONDS)
    except (OSError, http.client.HTTPException):
        return False
    return True


def http_get(
    url: str, timeout: float, headers: Mapping[str, str] | None = None
) -> tuple[Message, bytes]:
    """Headers and body of any HTTP answer, also a refusing one: something answers there.

    Raises:
        TimeoutError: nothing does within `timeout` seconds.
        OSError, http.client.HTTPException: nothing does, or it speaks no HTTP.
    """
    parts = urlsplit(url)
    # A proxy would not know this machine's own address; urllib takes a password for the port.
    proxies = urllib.request.ProxyHandler({} if is_loopback(parts.hostname) else None)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        request = urllib.request.Request(address, headers=dict(headers or {}))
        with urllib.request.build_opener(proxies).open(request, timeout=timeout) as answer:
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


def _fault(proxy: str) -> str | None:
    """Why no library could use a proxy; None if they can."""
    try:
        parts = urlsplit(proxy.strip() if "://" in proxy else f"http://{proxy.strip()}")
        if not parts.hostname or parts.port == 0:
            return "it names no host; write http://HOST:PORT."
    except ValueError:
        return "it is no address; write http://HOST:PORT."
    if parts.scheme in ("socks5", "socks5h"):
        if all(map(find_spec, SOCKS_MODULES)):
            return None
        return (
            "SOCKS needs the packages httpx[socks], requests[socks] and python-socks. Install "
            "them, or name an HTTP proxy in http_proxy and https_proxy."
        )
    if parts.scheme in ("http", "https"):
        return None
    return f"nothing here knows proxies of the kind {parts.scheme}; write http://HOST:PORT."


def _hosts(no_proxy: str) -> Iterator[str]:
    """The entries of NO_PROXY in the one form that every library takes."""
    for entry in re.split(r"[\s,;]+", no_proxy):
        host = re.sub(r"^\w+://|/$|[\[\]]", "", entry)
        if re.fullmatch(r"[\w.*-]+(:\d+)?(/\d+)?", host, re.ASCII) or _is_address(host):
            yield host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
