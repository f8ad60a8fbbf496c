"""Building a data set whose files may be elsewhere: they are copied first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torchyard.core.data.raw import RawData
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.remote.download import RemoteCopy
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


def fingerprint_of(params: DatasetParams, downloads: Path) -> str:
    """`params.fingerprint()`; of what is elsewhere the version that is there now.

    Raises:
        UserError, UnreachableError: as `RemoteCopy.version` raises them.
    """
    remote = addresses(params)
    if not remote:
        return params.fingerprint()
    state = {name: RemoteCopy(each, downloads).version() for name, each in remote.items()}
    for name in type(params).model_fields:
        if isinstance(path := getattr(params, name), Path):
            status = path.stat()
            state[name] = f"{status.st_size} {status.st_mtime_ns}"
    return json.dumps(state)
