"""The search space of a study: which settings differ from trial to trial, and between what."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchyard.core.config.parsing import parse_value
from torchyard.core.errors import UserError, suggestion

ACCEPTED = "log(1e-4,1e-1), uniform(0.8,0.99), int(16,128), int(16,128,log), [lenet,resnet18]"
MOST_CORNERS = 256  # of a larger space, each end is tried with the first end of all others
MOST_INTEGERS = 1000  # in a grid

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, which belong to it.

    Attributes:
        low, high: the ends.
        log: whether they are drawn evenly by their logarithm.
        whole: whether they are integers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are tried before a study starts."""
        return (self.low,) if self.low == self.high else (self.low, self.high)

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """All its values, in a grid; None where they cannot be listed."""
        if not self.whole or self.high - self.low >= MOST_INTEGERS:
            return None
        return tuple(range(int(self.low), int(self.high) + 1))

    def __str__(self) -> str:
        ends = ",".join(_written(end) for end in (self.low, self.high))
        if self.whole:
            return f"int({ends},log)" if self.log else f"int({ends})"
        return f"log({ends})" if self.log else f"uniform({ends})"


def _written(number: float) -> str:
    whole = float(number).is_integer() and abs(number) < 1e15
    return str(int(number)) if whole else repr(float(number))


@dataclass(frozen=True)
class Choices:
    """One of some values; lists and sections are among them as JSON."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Scalar, ...]:
        """What Optuna and its plots call them: a value, or its JSON."""
        return tuple(_label(value) for value in self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are tried before a study starts: all."""
        return self.values

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """All its values, in a grid."""
        return self.labels

    def __str__(self) -> str:
        return json.dumps(list(self.values), ensure_ascii=False)


Domain = Range | Choices


def parse_domain(key: str, value: Any) -> Domain | None:
    """The domain that a setting's value stands for; None for a plain value.

    Args:
        key: the setting, for messages.
        value: as it is written in a command or a YAML file.

    Raises:
        UserError: it is meant to be one, and is malformed, empty or contradictory.
    """
    if isinstance(value, str) and value.startswith("["):
        value = parse_value(value)
        if isinstance(value, str):
            raise UserError(f"{key}: {value}: the list has no end")
    if isinstance(value, list | tuple):
        if not value:
            raise UserError(f"{key}: [] has no choice  (a list is one choice as [[]])")
        if len({_label(each) for each in value}) < len(value):
            raise UserError(f"{key}: {value}: a choice is there twice")
        return Choices(tuple(value))
    match = re.fullmatch(r"([A-Za-z_]+)\((.*)\)", value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    name, arguments = match[1], [each.strip() for each in match[2].split(",")]
    if name not in ("log", "uniform", "int"):
        known = suggestion(name, ["log", "uniform", "int"])
        raise UserError(f"{key}: no distribution named '{name}'.{known}")
    return _range(key, str(value).strip(), name, arguments)


def _range(key: str, written: str, name: str, arguments: Sequence[str]) -> Range:
    log = name == "log"
    if name == "int" and len(arguments) == 3 and arguments[2] == "log":
        log, arguments = True, arguments[:2]
    try:
        low, high = (float(each) for each in arguments)
    except ValueError:
        raise UserError(f"{key}: {written} has not two numbers  (accepts: {ACCEPTED})") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{key}: {written}: both ends must be finite")
    if low > high:
        raise UserError(f"{key}: {written} is empty: {arguments[0]} is above {arguments[1]}")
    if name == "int" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{key}: {written}: both ends must be integers")
    if log and low <= 0:
        raise UserError(f"{key}: {written}: there is no logarithm of {arguments[0]}")
    if name == "int":
        return Range(int(low), int(high), log, whole=True)
    return Range(low, high, log)


def _label(value: Any) -> Scalar:
    scalar = value is None or isinstance(value, str | int | float)
    return value if scalar else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class SearchSpace:
    """Settings and their domains, in the order in which they were given."""

    domains: Mapping[str, Domain]

    def corners(self) -> Iterator[dict[str, Any]]:
        """The values at the ends of the domains: all combinations, or some of too many."""
        ends = {key: domain.ends for key, domain in self.domains.items()}
        if math.prod(len(each) for each in ends.values()) <= MOST_CORNERS:
            for values in itertools.product(*ends.values()):
                yield dict(zip(ends, values, strict=True))
            return
        first = {key: each[0] for key, each in ends.items()}
        yield first
        for key, each in ends.items():
            for value in each[1:]:
                yield first | {key: value}

    def values(self, labels: Mapping[str, Scalar]) -> dict[str, Any]:
        """The values of settings from what Optuna calls them."""
        found: dict[str, Any] = {}
        for key, domain in self.domains.items():
            label = found[key] = labels[key]
            if isinstance(domain, Choices):
                # By type, too: 1 and true are equal to Python.
                found[key] = next(
                    value
                    for value, each in zip(domain.values, domain.labels, strict=True)
                    if each == label and isinstance(each, bool) == isinstance(label, bool)
                )
        return found

    def texts(self) -> dict[str, Any]:
        """The domains as a YAML file has them."""
        return {
            key: list(domain.values) if isinstance(domain, Choices) else str(domain)
            for key, domain in self.domains.items()
        }


def as_override(key: str, value: Any) -> str:
    """A setting and its value, as a command line takes it."""
    if isinstance(value, float):
        return f"{key}={value!r}"
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
