"""The address of data on another machine: `s3://bucket/photos.tar.gz#sha256=…`."""

from __future__ import annotations

import re
from importlib.util import find_spec

from torchyard.core.errors import suggestion

# What fsspec needs to read each kind of address, and what installs it.
_NEEDS = {
    "https": ("aiohttp", "aiohttp"),
    "http": ("aiohttp", "aiohttp"),
    "s3": ("s3fs", "'torchyard[s3]'"),
    "gs": ("gcsfs", "gcsfs"),
    "hf": ("huggingface_hub", "'torchyard[huggingface]'"),
    "abfs": ("adlfs", "adlfs"),
}
_PINNED = re.compile(r"#sha256=([0-9a-f]{64})$")


class RemoteAddress(str):
    """An address that fsspec can read; a digest may follow, which what is there must have.

    Attributes:
        source: the address without the digest.
        digest: sha256, 64 hexadecimal digits; empty where none is given.
    """

    __slots__ = ("digest", "source")

    source: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> RemoteAddress | None:
        """Read an address; None for a text that is none.

        Raises:
            ValueError: no such kind of address is read, or what reads it is not installed.
        """
        kind, separator, rest = text.partition("://")
        if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", kind):
            return None
        if kind not in _NEEDS:
            shown = suggestion(kind.lower(), list(_NEEDS))
            raise ValueError(
                f"no data are read from an address that begins with '{kind}://'.{shown}"
            )
        package, install = _NEEDS[kind]
        if find_spec(package) is None:
            raise ValueError(f"'{kind}://' needs {package}: python -m pip install {install}")
        if not rest.partition("#")[0].strip("/"):
            raise ValueError(
                f"'{text}' names nothing; an address is like {kind}://NAME/photos.tar.gz"
            )
        fixed = _PINNED.search(text)
        if fixed is None and "#sha256" in text:
            raise ValueError("the digest in '#sha256=…' has 64 digits, 0 to 9 and a to f")
        address = cls(text)
        address.source = text[: fixed.start()] if fixed else text
        address.digest = fixed[1] if fixed else ""
        return address
