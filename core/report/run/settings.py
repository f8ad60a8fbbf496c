"""In which settings runs differ, as people read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

UNSET = ("null", "[]", "{}")
PROMOTION = "promote"  # a section


def differing(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """The settings that are not the same in all runs, by name: of each run, None where it is unset.

    Of what is chosen by name the names are enough, where they differ.

    Args:
        settings: of each run, as they are recorded: `optimizer.lr`.
    """
    promotions = [_promotion(values) for values in settings]
    apart = len({*promotions}) > 1
    rows = {}
    for name in sorted({name for values in settings for name in values}):
        if apart and name.partition(".")[0] == PROMOTION:
            continue  # how gates judge a network did not train it: one row for all of that
        found = [values.get(name) for values in settings]
        texts = [None if text in UNSET else text for text in found]
        if len({*texts}) > 1:
            rows[name] = _by_names(texts)
    return rows | ({PROMOTION: promotions} if apart else {})


def _by_names(texts: Sequence[str | None]) -> list[str | None]:
    """The names in place of lists of what is chosen by name, where they tell them apart."""
    names = [None if text is None else _names(text) for text in texts]
    whole = all(name or text is None for name, text in zip(names, texts, strict=True))
    return names if whole and len({*names}) == len({*texts}) else [*texts]


def _promotion(settings: Mapping[str, str]) -> str | None:
    """`digits: beats_champion`; None of a run that was not to be promoted."""
    model = settings.get(f"{PROMOTION}.model")
    gates = _names(settings.get(f"{PROMOTION}.gates", ""))
    return f"{model}: {gates or 'no gate'}" if model else None


def _names(text: str) -> str | None:
    """The names in a list of what is chosen by name; None of another text."""
    if not text.startswith("[{"):
        return None
    try:
        return ", ".join(each["name"] for each in json.loads(text))
    except (ValueError, TypeError, KeyError):  # it was shortened, or another program's
        return None
