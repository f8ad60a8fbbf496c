"""Building a data set whose files may be elsewhere: they are copied first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torchyard.core.data.raw import RawData, SampleSpec
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.remote.download import RemoteCopy
from torchyard.core.errors import UserError
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.params import DatasetParams
from torchyard.core.redaction import redacted_uri


def addresses(params: DatasetParams) -> dict[str, RemoteAddress]:
    """The parameters that are addresses of data on other machines, by their names.

    `build` is called once there are copies, whose paths stand in place of the addresses.
    """
    values = ((name, getattr(params, name)) for name in type(params).model_fields)
    return {name: value for name, value in values if isinstance(value, RemoteAddress)}


def build(params: DatasetParams, downloads: Path) -> RawData:
    """`params.build`, once there are copies of what is elsewhere; their digests are its source.

    Raises:
        UserError: something is not there, may not be read, or is not what it should be.
        UnreachableError: its server does not answer.
    """
    copies = {
        name: (address, *RemoteCopy(address, downloads).fetch())
        for name, address in addresses(params).items()
    }
    if not copies:
        return params.build(downloads)
    here = params.model_copy(update={name: path for name, (_, path, _) in copies.items()})
    sources = [
        f"{redacted_uri(address.source)}#sha256={digest}" for address, _, digest in copies.values()
    ]
    raw = here.build(downloads)
    return replace(raw, source=", ".join(sources)) if isinstance(raw, RawData) else raw


@contextmanager
def asking(name: str, method: str) -> Iterator[None]:
    """Make what a data set's method raises an error of the user's, which names both."""
    try:
        with contained():
            yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"dataset {name}: {error}") from error
    except Exception as error:  # of a plugin
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"dataset {name}: {method}() raises {said}") from error


def described(name: str, params: DatasetParams) -> SampleSpec | None:
    """`params.describe()`; None where the data are elsewhere.

    Raises:
        UserError: it raises, or returns something else.
    """
    if addresses(params):
        return None
    with asking(name, "describe"):
        spec: object = params.describe()
    if not isinstance(spec, SampleSpec | None):
        kind = type(spec).__name__
        raise UserError(f"dataset {name}: describe() returns a {kind}, not a SampleSpec or None")
    return spec


def fingerprint_of(name: str, params: DatasetParams, downloads: Path) -> str:
    """`params.fingerprint()`; of what is elsewhere the version that is there now.

    Raises:
        UserError: it raises, or returns no text; or as `RemoteCopy.version` raises it.
        UnreachableError: as `RemoteCopy.version` raises it.
    """
    remote = addresses(params)
    with asking(name, "fingerprint"):
        if not remote:
            found: object = params.fingerprint()
        else:
            state = {field: RemoteCopy(each, downloads).version() for field, each in remote.items()}
            for field in type(params).model_fields:
                if isinstance(path := getattr(params, field), Path):
                    status = path.stat()
                    state[field] = f"{status.st_size} {status.st_mtime_ns}"
            found = json.dumps(state)
    if not isinstance(found, str):
        kind = type(found).__name__
        raise UserError(f"dataset {name}: fingerprint() returns a {kind}, not a text")
    return found
