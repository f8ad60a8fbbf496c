"""CIFAR's batches: pickles of plain values and arrays of integers, read without trusting them.

A pickle can run any code, and numpy believes what one says of an array's type and size. Here
nothing is called but the stand-ins below, and an array is built from bytes of which type, shape
and length are checked.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import TYPE_CHECKING, Any, ClassVar

from torchyard import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INTEGER = re.compile("[iu][1248]")  # the bytes of a value


class StandIn:
    """Something of numpy's in a pickle: what it is made from, and its state."""

    state: Any

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None


class Array(StandIn):
    """An array; its state is (version, shape, dtype, whether in Fortran's order, bytes)."""


class Type(StandIn):
    """A dtype; its arguments begin with its name, its state with a version and the byte order."""


class Latin1(bytes):
    """What is made by `_codecs.encode`, by which old pickles hold bytes."""

    def __new__(cls, text: str, encoding: str) -> Latin1:
        """The bytes of a text."""
        if encoding != "latin1":
            raise pickle.UnpicklingError("it holds bytes in another encoding than latin1")
        return super().__new__(cls, text.encode("latin1"))


ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,  # its name since numpy 2
    ("numpy", "ndarray"): StandIn,
    ("numpy", "dtype"): Type,
    ("_codecs", "encode"): Latin1,
}


class BatchUnpickler(pickle._Unpickler):
    """The unpickler that is written in Python, which allocates what is there, not what is said."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # but for this one

    def find_class(self, module: str, name: str) -> type:
        """What stands in for the functions and classes that an array needs.

        Raises:
            UnpicklingError: the pickle names another one.
        """
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return ALLOWED[module, name]

    def load_build(self) -> None:
        """Keep the state of a stand-in; nothing else has one."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        built = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(built, StandIn):
            raise pickle.UnpicklingError("it changes something else than an array")
        built.state = state

    dispatch[pickle.BUILD[0]] = load_build


def read_batch(data: bytes, what: str) -> dict[Any, Any]:
    """A batch of CIFAR, of plain values and `Array`s.

    Raises:
        UserError: it is damaged, or not a pickle of plain values and arrays.
    """
    try:
        # Python 2 wrote the files; "latin1" keeps its byte strings as they are.
        batch = BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{what} is refused or damaged: {error}") from error
    if not isinstance(batch, dict):
        raise UserError(f"{what} is not a dictionary")
    return batch


def integers(value: Any) -> npt.NDArray[np.integer[Any]]:
    """The array that an `Array` or a list of integers stands for.

    Raises:
        TypeError: it is something else.
        ValueError: its values are no integers, or are more or fewer bytes than its shape needs.
    """
    import numpy as np

    if isinstance(value, list) and all(type(each) is int for each in value):
        return np.array(value, np.int64)
    if not isinstance(value, Array):
        raise TypeError("neither an array nor a list of integers")
    _, shape, kind, is_fortran, content = value.state
    name = kind.arguments[0] if isinstance(kind, Type) else None
    if not isinstance(name, str) or not INTEGER.fullmatch(name):
        raise ValueError("an array of something else than integers")
    dtype = np.dtype(f">{name}" if kind.state[1:2] == (">",) else f"<{name}")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array without a shape")
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array of more or fewer bytes than its shape needs")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
