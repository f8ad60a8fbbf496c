"""Pickles of arrays: read as numpy reads them, refused where they say what is not so."""

from __future__ import annotations

import copyreg
import pickle
import resource
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.plugins.datasets.published_files import python2_pickle
from torchyard import UserError
from torchyard.plugins.datasets.batches import Array, BatchUnpickler, integers, read_batch

UINT8 = np.dtype("u1")
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)
KINDS = arrays.integer_dtypes(endianness="?") | arrays.unsigned_integer_dtypes(endianness="?")


@given(arrays.arrays(KINDS, SHAPES), st.booleans(), st.sampled_from([0, 1, 2, 3, 4, "old"]))
def test_arrays_of_integers_come_back(values: Any, fortran: bool, protocol: Any) -> None:
    values = np.asfortranarray(values) if fortran else values
    batch = {"data": values, "labels": [1, 2**40, -3]}
    data = python2_pickle(batch) if protocol == "old" else pickle.dumps(batch, protocol)
    read = read_batch(data, "it")
    np.testing.assert_array_equal(integers(read["data"]), values, strict=True)
    assert integers(read["labels"]).tolist() == batch["labels"]


class Forged:
    """Pickled as an array with another state than its own."""

    def __init__(self, shape: Any, fortran: bool, content: Any, kind: Any = UINT8) -> None:
        self.state = (1, shape, kind, fortran, content)

    def __reduce__(self) -> Any:
        reconstruct, arguments, _ = np.zeros(1, np.uint8).__reduce__()
        return reconstruct, arguments, self.state


class ForgedType:
    """Pickled as a dtype whose state says that its values are larger."""

    def __reduce__(self) -> Any:
        return np.dtype, ("u1", False, True), (3, "|", None, None, None, 1 << 20, 1, 0)


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (Forged((10**9,), False, b"abc"), "more or fewer bytes than its shape needs"),
        (Forged((-1,), False, b"abc"), "without a shape"),
        (Forged((2**63, 2), False, b"a"), "more or fewer bytes"),
        (Forged([3], False, b"abc"), "without a shape"),
        (Forged((True,), False, b"a"), "without a shape"),
        (Forged((3,), False, [1, 2, 3]), "more or fewer bytes"),
        (Forged((1,), False, b"12345678", kind=np.dtype("O")), "something else than integers"),
        (Forged((1,), False, b"12345678", kind=np.dtype("f8")), "something else than integers"),
        (Forged((1,), False, b"12345678", kind=np.dtype("V8")), "something else than integers"),
        (Forged((1,), False, b"1", kind="u1"), "something else than integers"),
        (np.array([object], dtype=object), "names __builtin__.object, which no array needs"),
        (np.array([1, "a"], dtype=object), "something else than integers"),
        (np.zeros(3, "M8[s]"), "something else than integers"),
    ],
)
def test_what_an_array_says_of_itself_is_checked(forged: Any, reason: str) -> None:
    with pytest.raises((UserError, ValueError), match=reason):
        integers(read_batch(pickle.dumps({"data": forged}, 2), "it")["data"])


def test_a_forged_dtype_reads_no_more_than_the_bytes() -> None:
    forged = Forged((3,), False, b"abc", kind=ForgedType())
    read = integers(read_batch(pickle.dumps({"data": forged}, 2), "it")["data"])
    assert (read.dtype, read.tobytes()) == (np.dtype("u1"), b"abc")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "changes something else than an array"),
        (b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.", "changes something else than an array"),
        (b"]}X\x01\x00\x00\x00aK\x01sb.", "changes something else"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "in another encoding"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.", "is refused or damaged"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b"a.", "is refused or damaged"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "is not a dictionary"),
        (b"\x80\x02\x82\x01.", "is refused or damaged"),
    ],
)
def test_no_other_instruction_does_anything(data: bytes, reason: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copyreg.add_extension("os", "system", 1)
    try:
        with pytest.raises(UserError, match=reason):
            read_batch(data, "it")
    finally:
        copyreg.remove_extension("os", "system", 1)
        pickle._extension_cache.clear()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # KB


def test_other_values_are_no_arrays() -> None:
    for value in (None, "abc", [1.0], [True], [[1]], Array(), [2**70]):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            integers(value)
    assert BatchUnpickler.dispatch is not pickle._Unpickler.dispatch
