"""The address that machines share, for prepared data and checkpoints: TORCHYARD_SHARED."""

from __future__ import annotations

import functools
import os

from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.remote.connection import Remote
from torchyard.core.errors import UserError
from torchyard.core.redaction import redacted

SHARED = "TORCHYARD_SHARED"  # environment variable
PREPARED = "prepared"  # folders at the address
CHECKPOINTS = "checkpoints"


class SharedAddress(RemoteAddress):
    """An address such as `s3://team/torchyard`; below it are prepared data and checkpoints."""

    __slots__ = ()

    @classmethod
    def chosen(cls) -> SharedAddress | None:
        """The one that the environment names, if it does.

        Raises:
            UserError: it names something else.
        """
        text = os.environ.get(SHARED)
        if not text:
            return None
        try:
            address = cls.parse(text)
        except ValueError as error:
            raise UserError(f"{SHARED}: {error}") from error
        if address is None or address.digest:
            raise UserError(
                f"{SHARED} is an address such as s3://team/torchyard, not '{redacted(text)}'. "
                "A folder that several machines have is named in TORCHYARD_CACHE and "
                "TORCHYARD_RUNS."
            )
        assert isinstance(address, SharedAddress)
        return address

    @property
    def writable(self) -> bool:
        """Whether something can be put there: a web server only tells what it has."""
        return not self.startswith(("http://", "https://"))

    def folder(self, *names: str) -> Remote:
        """A folder below it.

        Raises:
            UserError, UnreachableError: it cannot be used, or nothing answers.
        """
        return Remote("/".join((self.source.rstrip("/"), *names)))


def check_shared() -> None:
    """Find out before any work whether something can be put to the address, once in a process.

    Raises:
        UserError, UnreachableError: the address is none, cannot be used, or nothing answers.
    """
    if address := SharedAddress.chosen():
        _check(address)


@functools.cache
def _check(address: SharedAddress) -> None:
    if address.writable:
        try:
            address.folder().write("torchyard", b"")
        except UserError as error:
            raise type(error)(f"{SHARED}: {error}") from error
