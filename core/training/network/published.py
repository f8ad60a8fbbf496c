"""Published weights: found in a folder of this machine, or fetched into it."""

from __future__ import annotations

import hashlib
import re
import socket

import torch

from torchyard.core.errors import UserError
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.params import ModelParams, Pretrained

SILENCE_SECONDS = 30.0  # after which a server is given up


def fetch(model: ModelParams, name: str) -> Pretrained:
    """The published weights of a model, whose file is on this machine then.

    Raises:
        UserError: there are none of that name, or the file is neither here nor to be had.
    """
    try:
        with contained():
            found = model.published_weights(name)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        also = "" if name == "default" else ", and it names no file and no run"
        raise UserError(f"model.weights: {reason or type(error).__name__}{also}") from error
    file = found.file
    digest = re.search(r"-([0-9a-f]{8,})\.\w+$", file.name)
    if file.is_file():
        if digest and not _sha256(found).startswith(digest[1]):
            raise UserError(
                f"model.weights: {file} is damaged: its sha256 does not begin with {digest[1]}. "
                f"Delete it{', and fetch ' + found.url if found.url else ''}"
            )
        return found
    where = f"fetch {found.url} elsewhere and " if found.url else ""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        if not found.url:
            raise OSError("the file is not on this machine")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            found.url, str(file), digest[1] if digest else None, progress=False
        )
    except Exception as error:  # of the network, the server, the disk, or a wrong digest
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        how = f"{where}save it as {file}"
        raise UserError(f"model.weights: '{name}' cannot be had ({reason}): {how}") from error
    finally:
        socket.setdefaulttimeout(before)
    return found


def _sha256(found: Pretrained) -> str:
    with found.file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
