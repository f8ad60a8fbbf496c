"""The errors that end a command, by who can do something about them."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torchyard.core.redaction import redacted

MOST_LISTED = 12  # names in a message


class UserError(Exception):
    """Something the user can correct: exit status 2, no traceback.

    Attributes:
        problems: every problem found, not only the first, one line each.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        each = [problems] if isinstance(problems, str) else problems
        self.problems = [redacted(problem) for problem in each]
        super().__init__("\n".join(self.problems))


class UnreachableError(UserError):
    """Something on the network does not answer; a retry may succeed."""


class RunError(Exception):
    """A run that was started and could not be finished: exit status 1, no traceback.

    The message is for the person who started the run; `details` is for the log.

    Attributes:
        details: a traceback, or the last that a process has printed.
        kept: the run's artifact that has them; "" where it has none, and they are to be shown.
    """

    kept = ""

    def __init__(self, message: str, details: str = "") -> None:
        self.details = redacted(details)
        super().__init__(redacted(message))


class DivergedError(RunError):
    """The loss or the weights became NaN or infinite: from the last checkpoint they would again."""


class StoreUnavailableError(RunError):
    """The tracking store does not answer, is locked or cannot be written; a retry may succeed."""


def portable(error: UserError | RunError) -> UserError | RunError:
    """The same error of a class above, which any process can unpickle; a plugin's it cannot."""
    if isinstance(error, RunError):
        return RunError(str(error), error.details)
    kind = UnreachableError if isinstance(error, UnreachableError) else UserError
    return kind(error.problems)


def without_secrets(error: Exception) -> Exception:
    """The error, or a RunError in its place where its text or its `repr` has a secret in it."""
    text = str(error)
    if redacted(text) == text and redacted(repr(error)) == repr(error):
        return error
    return RunError(f"{type(error).__name__}: {text}", "".join(traceback.format_exception(error)))


def suggestion(name: str, accepted: Sequence[str], nearby: Mapping[str, str] | None = None) -> str:
    """The end of a message about an unknown name: the nearest name, and all that are accepted.

    Args:
        name: that is unknown.
        accepted: names to list.
        nearby: names that may be meant, and how each is written; by default those accepted.
    """
    hint = did_you_mean(name, nearby or accepted)
    return f"{hint}  (accepts: {listed(accepted) or 'none'})"


def did_you_mean(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """The nearest of the names there are, or how it is written; empty where none is near."""
    nearest = difflib.get_close_matches(name, known, n=1)
    if not nearest:
        return ""
    written = known[nearest[0]] if isinstance(known, Mapping) else nearest[0]
    return f" Did you mean '{written}'?"


def nearest_file(path: Path, pattern: str = "*") -> str:
    """`did_you_mean` of a file that is not there and the others in its folder."""
    there = {each.name: str(each) for each in sorted(path.parent.glob(pattern))}
    return did_you_mean(path.name, there)


def listed(names: Sequence[str]) -> str:
    """Names for a message: a dozen at most, and how many more there are."""
    rest = len(names) - MOST_LISTED
    if rest <= 1:  # one more is as short as its count
        return ", ".join(names)
    return f"{', '.join(names[:MOST_LISTED])} and {rest} more"
