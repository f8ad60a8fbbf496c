"""The one switch for all that uses private parts of torch, which any release may change.

Behind it are the compiled step (`compilation.py`, and `im2col.py`, which replaces inductor's
decompositions) and the trimmed kernels (`kernels.py`, which replace `Conv2d._conv_forward`).
Without them a training is slower and learns the same.
"""

from __future__ import annotations

import os

import torch
from packaging.version import Version

PLAIN_TORCH = "TORCHYARD_PLAIN_TORCH"
# Versions that the tests have run on; a newer one is added once they have passed on it.
OLDEST, NEWEST = (2, 11), (2, 15)


def private_parts_refused() -> str | None:
    """Why private parts of torch are not used, as a clause; None where they are."""
    if os.environ.get(PLAIN_TORCH, "0") not in ("", "0"):
        return f"{PLAIN_TORCH} is set"
    # A version before its release, such as 2.16.0a0, counts as 2.16.
    if not OLDEST <= Version(str(torch.__version__)).release[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        return f"torch {torch.__version__} is not one of the tested versions {oldest} to {newest}"
    return None
