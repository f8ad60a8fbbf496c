"""Downloads, verified by their checksums."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from torchyard import UnreachableError, UserError

logger = logging.getLogger(__name__)

TIMEOUT = 10  # seconds without an answer
CHUNK = 1 << 18


def fetch(file: Path, addresses: Sequence[str], checksum: str) -> Path:
    """Download a file, unless it is there already.

    Not by torchvision's helper, which has no timeout, falls back from https to http, and
    downloads under the final name.

    Args:
        file: path to keep it under; it appears there complete and verified, or not at all.
        addresses: http, https or file URLs; tried in turn.
        checksum: md5 (32 hexadecimal digits) or sha256 (64).

    Raises:
        UserError: no address has the file, or the file there has another checksum.
        UnreachableError: no address has it now, but trying again later may help.
        OSError: the disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    unreachable, refused = [], []
    temporary = False
    with FileLock(file.with_name(file.name + ".lock")):
        if file.is_file() and checksum_of(file, checksum) == checksum:
            return file
        for address in addresses:
            try:
                _download(address, part)
                actual = checksum_of(part, checksum)
                if actual == checksum:
                    return part.replace(file)
                refused.append(
                    f"the file at {address} is not the expected one: its checksum is {actual}, "
                    f"not {checksum}. It was not kept."
                )
            except urllib.error.HTTPError as error:
                temporary |= error.code >= 500 or error.code == 429
                with error:  # it holds the connection
                    unreachable.append(f"{address}: {error}")
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                temporary = True
                # A URLError's own text wraps its reason.
                unreachable.append(f"{address}: {getattr(error, 'reason', error)}")
            finally:
                part.unlink(missing_ok=True)
    raise (UnreachableError if temporary and not refused else UserError)(
        refused
        or f"the download failed ({'; '.join(unreachable)}). You can download from another "
        "server with dataset.mirror=ADDRESS, use a copy that you have with dataset.path=FOLDER, "
        "or use the data set 'digits', which needs no download"
    )


def checksum_of(file: Path, like: str) -> str:
    """The checksum of a file, of the same kind as `like`: md5, or sha256 if that is longer."""
    digest = hashlib.md5(usedforsecurity=False) if len(like) == 32 else hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(address: str, part: Path) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "torchyard"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, part.open("wb") as out:
        total = int(response.headers.get("Content-Length") or 0)
        logger.info("Downloading %s (%.1f MB).", address, total / 1e6)
        done, logged = 0, time.monotonic()
        while chunk := response.read(CHUNK):
            out.write(chunk)
            done += len(chunk)
            if time.monotonic() - logged > 5:
                logged = time.monotonic()
                logger.info("Downloaded %.1f of %.1f MB.", done / 1e6, total / 1e6)
        if done < total:
            raise http.client.HTTPException(
                f"the connection broke off after {done} of {total} bytes"
            )
