"""Standard input, output and error, such that none of them ends a command.

A reader may go away (`| head`), a terminal be closed, a disk be full, a descriptor be closed from
the start, an encoding lack a character: what cannot be written is lost, and the command goes on.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

ESCAPE = "torchyard.escape"  # handler of characters that an encoding lacks


class Output(io.FileIO):
    """An open descriptor to write to; what it does not take is lost.

    Args:
        descriptor: stays open.
        on_loss: called with the first error.

    Attributes:
        error: the first one.
    """

    def __init__(self, descriptor: int, on_loss: Callable[[OSError], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None
        self._on_loss = on_loss

    def write(self, data: Any) -> int:
        """Write all of it or some, and wait where the descriptor does not."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            if self.error is None:
                self.error = error
                self._on_loss(error)
            return len(data)
        return written


def protect(*, goes_on: bool) -> Output:
    """Replace the process's streams; returns what standard output writes to.

    Args:
        goes_on: whether the command has more to do than to print, and says that it goes on.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file or pipe would get its number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error(ESCAPE, _escape)

    def say(error: OSError) -> None:
        if goes_on or error.errno != errno.EPIPE:
            rest = " The run goes on without its display." * goes_on
            print(f"Standard output cannot be written: {error.strerror}.{rest}", file=sys.stderr)

    output, errors = Output(1, say), Output(2, lambda error: None)
    sys.stdout, sys.stderr = _text(output, sys.stdout), _text(errors, sys.stderr)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115
    return output


def _text(output: Output, replaced: TextIO | None) -> io.TextIOWrapper:
    """A stream that has encoding and buffering of the one it replaces."""
    wrapper = replaced if isinstance(replaced, io.TextIOWrapper) else None
    at_once = wrapper is not None and wrapper.write_through
    return io.TextIOWrapper(
        output if at_once else io.BufferedWriter(output),
        encoding=wrapper.encoding if wrapper else "utf-8",
        errors=ESCAPE,
        line_buffering=wrapper is not None and wrapper.line_buffering,
        write_through=at_once,
    )


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters as \uXXXX, which in JSON stays what it was."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (text[index : index + 2].hex() for index in range(0, len(text), 2))
    return "".join(rf"\u{unit}" for unit in units), error.end
