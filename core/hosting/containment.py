"""What a plugin's code may not do to this process: end it, or change what others count on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class PluginExit(Exception):  # noqa: N818 - what was raised is no error
    """A plugin raised what ends a program; its class has the name of what that was."""


_leave = os._exit
_contained: list[tuple[int, int]] = []  # the process and thread of each `contained` under way


def _refuse_to_leave(status: int) -> NoReturn:
    # Other threads and forked processes end as they mean to.
    if (os.getpid(), threading.get_ident()) in _contained:
        raise SystemExit(f"os._exit({status})")
    _leave(status)


@contextmanager
def contained() -> Iterator[None]:
    """Run a plugin's code: what would end this process becomes an error of the plugin's.

    That is SystemExit, `os._exit`, and KeyboardInterrupt where no signal came: one that did come
    goes on.

    Raises:
        PluginExit: in place of anything that is no `Exception`; its class bears the other's name,
            so that messages show it as "SystemExit: 3".
    """
    global _leave
    came: list[int] = []
    handlers: dict[int, Any] = {}
    inside = (os.getpid(), threading.get_ident())

    def noting(handler: Callable[[int, Any], Any], number: int, frame: Any) -> Any:
        came.append(number)
        return handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, partial(noting, handler))
    if not _contained and os._exit is not _refuse_to_leave:  # it may be another's by now
        _leave = os._exit
    _contained.append(inside)
    os._exit = _refuse_to_leave
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if came:
            raise
        kind = type(type(error).__name__, (PluginExit,), {})
        raise kind(str(error)).with_traceback(error.__traceback__) from error
    finally:
        _contained.remove(inside)
        if not _contained:
            os._exit = _leave
        for noted, handler in handlers.items():
            signal.signal(noted, handler)


class Surroundings(NamedTuple):
    """What every other plugin and all that is relative counts on, and an import can change."""

    folder: str  # the working one; empty where it is deleted
    dtype: Any  # torch's default type; None where torch is not imported
    gradients: bool = True

    @classmethod
    def now(cls) -> Surroundings:
        """Those of this moment."""
        folder, torch = "", sys.modules.get("torch")
        with suppress(FileNotFoundError):
            folder = str(Path.cwd())
        if torch is None:
            return cls(folder, None)
        return cls(folder, torch.get_default_dtype(), torch.is_grad_enabled())

    def restore(self) -> Iterator[str]:
        """Put back what was changed; yields that, in words."""
        now, torch = Surroundings.now(), sys.modules.get("torch")
        if self.folder not in ("", now.folder):
            os.chdir(self.folder)
            yield f"the working folder, to {now.folder}: give files whole paths"
        if torch is None:
            return
        if now.dtype != (dtype := self.dtype or torch.float32):
            torch.set_default_dtype(dtype)
            yield f"torch's default type, to {now.dtype}: give tensors theirs"
        if now.gradients != self.gradients:
            torch.set_grad_enabled(self.gradients)
            yield "whether torch computes gradients"
