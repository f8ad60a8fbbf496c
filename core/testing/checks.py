"""What the test kit's checks share: how a fault is told, and comparing tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from torchyard.core.hosting.lint import class_line, described
from torchyard.core.hosting.manager import Host
from torchyard.core.hosting.params import PluginParams
from torchyard.core.hosting.registration import RESERVED
from torchyard.core.hosting.sources import file_source, import_file

if TYPE_CHECKING:
    import torch

Kind = TypeVar("Kind", bound=PluginParams)

SAMPLES = 8  # of the tiny batch


class PluginFault(AssertionError):  # noqa: N818 - what it is
    """What a plugin does wrong."""


def plugin_in_file(file: Path, base: type[Kind], name: str) -> type[Kind]:
    """Load a plugin file as the host does.

    Args:
        file: the plugin's.
        base: `ModelParams` or another kind's class.
        name: what it is registered as.

    Raises:
        PluginFault: the file fails to load, or registers nothing of that kind and name.
    """
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    for broken in own.broken:
        raise PluginFault(f"{file} failed to load: {broken.reason}")
    try:
        found = own.find(base.kind, name).params
    except LookupError as error:
        raise PluginFault(f"{file}: {error}") from None
    assert issubclass(found, base)  # the host has seen to it
    return found


class Checks:
    """The checks of one plugin; the first that fails is raised.

    Raises:
        PluginFault: it is no plugin of the kind, or leaves its parameters unexplained.
    """

    def __init__(self, params: PluginParams, base: type[PluginParams]) -> None:
        if not isinstance(params, base):
            given = f"the class {params.__name__}" if isinstance(params, type) else repr(params)
            raise PluginFault(f"{given} is no instance of a {base.__name__}")
        own = type(params)
        self.name = own.__name__
        line = f", line {found}" if (found := class_line(own)) else ""
        file = inspect.getmodule(own)
        self._place = f"{getattr(file, '__file__', own.__module__)}{line}"
        self.that(described(own), "docstring", "the class has none")
        for name, field in own.model_fields.items():
            explained = field.description or not field.is_required()
            self.that(explained, "parameters", f"'{name}' has neither default nor description")
            self.that(name not in RESERVED, "parameters", f"none can be named '{name}'")

    def that(self, right: Any, part: str, problem: str) -> None:
        """Raise a fault unless `right` is true, which may be a tensor of one truth."""
        if not right:
            raise PluginFault(f"{self.name} ({self._place}): {part}: {problem}")

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Run the plugin's own code: what it raises is its fault."""
        try:
            yield
        except (Exception, SystemExit) as error:
            problem = f"raises {type(error).__name__}: {error}"
            raise PluginFault(f"{self.name} ({self._place}): {part}: {problem}") from error

    def reloaded(self, saved: Any, into: Any) -> None:
        """Carry a state through a checkpoint file, which takes tensors and plain values only."""
        from torchyard.core.training import checkpoint

        with TemporaryDirectory() as folder, self.running("checkpoint"):
            file = Path(folder) / "state.pt"
            checkpoint.save({"state": saved.state_dict()}, file)
            into.load_state_dict(checkpoint.load(file)["state"])


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's random generators as they were."""
    import torch

    from torchyard.core.training import checkpoint

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = checkpoint.random_state(device)
    try:
        yield
    finally:
        checkpoint.restore_random_state(state, device)


def tiny_batch(shape: tuple[int, ...]) -> torch.Tensor:
    """Eight samples that can be told apart: float32, noise about a level of each one's own."""
    import torch

    generator = torch.Generator().manual_seed(0)
    level = torch.randn(SAMPLES, shape[0], *(1 for _ in shape[1:]), generator=generator)
    return level + 0.5 * torch.randn(SAMPLES, *shape, generator=generator)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are of one shape and equal, NaN included."""
    return first.shape == second.shape and first.nan_to_num().equal(second.nan_to_num())


def same_state(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two networks have equal parameters and buffers under equal names."""
    return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
