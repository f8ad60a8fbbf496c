"""What a plugin registers, what its file declares, and what is wrong with it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torchyard.core.data.images.reading import ImageReading
from torchyard.core.hosting.params import KINDS, PluginParams
from torchyard.core.hosting.sources import Source

# Settings that stand beside a plugin's parameters in a configuration (`core/config/schema.py`).
# A model may have a parameter of its own called `weights`, which is then not torchyard's.
_RESERVED = {"name", "normalize", "freeze"}
_RESERVED_OF = {
    "dataset": set(ImageReading.model_fields),
    "model": {"freeze_epochs", "freeze_statistics"},
    "optimizer": {"groups", "layer_decay", "decay_norms"},
}


def reserved(kind: str) -> set[str]:
    """The names that no parameter of a plugin of that kind can have.

    Among them are those of the methods: pydantic would take such a method for a default.
    """
    own = {name for name in vars(KINDS[kind]) if not name.startswith(("_", "model_"))}
    return _RESERVED | _RESERVED_OF.get(kind, set()) | own


@dataclass(frozen=True)
class Registration:
    """One plugin under its name."""

    kind: str
    name: str
    params: type[PluginParams]
    source: Source
    builtin: bool

    def __post_init__(self) -> None:
        """Check what `register` was called with.

        Raises:
            TypeError: no class of that kind, or one without `build`.
            ValueError: the name, or one of the parameters' names, cannot be used.
        """
        name, params, what = self.name, self.params, f"{self.kind} '{self.name}'"
        base = KINDS[self.kind]
        if not (isinstance(params, type) and issubclass(params, base)):
            raise TypeError(f"{what}: {params!r} is not a {base.__name__}")
        if inspect.isabstract(params):
            raise TypeError(f"{what}: {params.__name__} has no build method")
        if not isinstance(name, str) or not name or any(each in name for each in " =,*"):
            raise ValueError(f"{what}: not a usable name")
        if not name.isprintable():
            raise ValueError(f"{what}: not a usable name: it has invisible characters")
        for field, info in params.model_fields.items():
            if info.alias or info.validation_alias:
                raise ValueError(f"{what}: the parameter '{field}' has an alias: give it that name")
        for name in sorted(reserved(self.kind) & params.model_fields.keys()):
            raise ValueError(f"{what}: no parameter can be named '{name}'")

    @property
    def status(self) -> str:
        """As the listing shows it."""
        return "built in" if self.builtin else "loaded"

    @property
    def qualified(self) -> str:
        """`source/name`, unique where the bare name is not."""
        return f"{self.source.name}/{self.name}"

    @property
    def summary(self) -> str:
        """The first line of the plugin's docstring."""
        return (inspect.getdoc(self.params) or "").partition("\n")[0]


@dataclass(frozen=True)
class Unloaded:
    """A plugin, or a family of them, that was not imported, as its file describes it.

    Attributes:
        name: "small"; or "timm/*", "*" where names are made at run time.
        summary: the first line of the class's docstring, where the file shows it.
        status: "not loaded", or "off".
    """

    kind: str
    name: str
    summary: str
    source: Source
    status: str
    builtin = False

    def covers(self, kind: str, name: str) -> bool:
        """Whether it may be what is asked for by this bare or qualified name."""
        stem, star, _ = self.name.partition("*")
        names = (name, name.removeprefix(f"{self.source.name}/"))
        return kind == self.kind and any(
            each.startswith(stem) if star else each == stem for each in names
        )


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a plugin, and the line of its file if one is to blame."""

    reason: str
    line: int | None = None


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that failed to load: in short why, and all its faults."""

    source: Source
    reason: str
    faults: tuple[Fault, ...] = ()
