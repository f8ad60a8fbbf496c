"""Files from the network, kept only when they are the ones that were meant."""

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

# Seconds without an answer; a machine without a network mostly knows at once.
TIMEOUT = 10
PIECE = 1 << 18


def fetch(file: Path, addresses: Sequence[str], checksum: str) -> Path:
    """Download a file, unless it is there already.

    torchvision's own helper has no timeout, falls back from https to http, and downloads
    under the final name.

    Args:
        file: where to keep it; appears there whole and verified, or not at all.
        addresses: http, https or file; tried in turn.
        checksum: md5 (32 hexadecimal digits) or sha256 (64).

    Raises:
        UserError: no address gave the file, or what was given has another checksum.
        UnreachableError: no address gave the file, but one may at another time.
        OSError: the disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    unreachable, refused = [], []
    may_pass = False
    with FileLock(file.with_name(file.name + ".lock")):
        if file.is_file() and checksum_of(file, checksum) == checksum:
            return file
        for address in addresses:
            try:
                _download(address, part)
                found = checksum_of(part, checksum)
                if found == checksum:
                    return part.replace(file)
                refused.append(
                    f"{address} is not the file that was expected: its checksum is {found}, "
                    f"not {checksum}. It was not kept."
                )
            except urllib.error.HTTPError as error:
                may_pass |= error.code >= 500 or error.code == 429
                with error:  # it holds the connection
                    unreachable.append(f"{address}: {error}")
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                may_pass = True
                # A URLError's own text wraps its reason.
                unreachable.append(f"{address}: {getattr(error, 'reason', error)}")
            finally:
                part.unlink(missing_ok=True)
    raise (UnreachableError if may_pass and not refused else UserError)(
        refused
        or f"the download failed ({'; '.join(unreachable)}). Three ways on: "
        "dataset.mirror=ADDRESS downloads from another place, dataset.path=FOLDER takes a copy "
        "that is there already, and the data set 'digits' needs no download"
    )


def checksum_of(file: Path, like: str) -> str:
    """The checksum of a file by the method that gave `like`: md5, or sha256 if it is longer."""
    digest = hashlib.md5(usedforsecurity=False) if len(like) == 32 else hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _download(address: str, part: Path) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "torchyard"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, part.open("wb") as out:
        total = int(response.headers.get("Content-Length") or 0)
        logger.info("Downloading %s (%.1f MB).", address, total / 1e6)
        done, told = 0, time.monotonic()
        while piece := response.read(PIECE):
            out.write(piece)
            done += len(piece)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                logger.info("%.1f of %.1f MB are here.", done / 1e6, total / 1e6)
        if done < total:
            raise http.client.HTTPException(f"it broke off after {done} of {total} bytes")
