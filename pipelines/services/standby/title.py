"""What `ps` shows of a forked process: the command line and environment of what it does."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_kept: list[ctypes.Array[ctypes.c_char]] = []  # the kernel reads them for as long as we live


class _Map(ctypes.Structure):
    """`struct prctl_mm_map` of prctl(2), PR_SET_MM_MAP."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((name, ctypes.c_uint64) for name in ("arg_start", "arg_end", "env_start", "env_end")),
        *(("auxv", ctypes.c_uint64), ("auxv_size", ctypes.c_uint32), ("exe_fd", ctypes.c_uint32)),
    )


def set_title(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Have the system show another command line and environment of this process, if it can.

    By the environment it is known to which service a process belongs (`daemon.py`).
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(Path(command[0]).name[:15])
    arguments = b"".join(os.fsencode(word) + b"\0" for word in command)
    variables = b"".join(
        os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items()
    )
    # proc(5): the fields after the name, which is in brackets; the third is the first of them.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    _kept[:] = [ctypes.create_string_buffer(arguments), ctypes.create_string_buffer(variables)]
    (arg_start, arg_end), (env_start, env_end) = (
        (ctypes.addressof(text), ctypes.addressof(text) + len(text) - 1) for text in _kept
    )
    start_code, end_code, start_stack = (int(fields[number - 3]) for number in (26, 27, 28))
    start_data, end_data, start_brk = (int(fields[number - 3]) for number in (45, 46, 47))
    brk = libc.sbrk(0)
    own = _Map(
        *(start_code, end_code, start_data, end_data, start_brk, brk, start_stack),
        *(arg_start, arg_end, env_start, env_end, 0, 0, 2**32 - 1),
    )
    # Where the kernel refuses it, the process is shown as the one that it was forked from.
    libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(own), ctypes.sizeof(own), 0)
