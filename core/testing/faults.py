"""What the test kit's assertions share: raising a fault, comparing tensors and states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.lint import class_line, has_docstring
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.params import PluginParams
from torchyard.core.hosting.registration import reserved
from torchyard.core.hosting.sources import file_source
from torchyard.core.training import checkpoint

Kind = TypeVar("Kind", bound=PluginParams)

SAMPLES = 8  # of the tiny batch


class PluginFault(AssertionError):  # noqa: N818 - a failed check, not an error of the kit
    """A requirement that a plugin does not meet."""


def plugin_in_file(file: Path, base: type[Kind], name: str) -> type[Kind]:
    """Load a plugin file as the host does.

    Args:
        file: the plugin's.
        base: `ModelParams` or another kind's class.
        name: under which it is registered.

    Raises:
        PluginFault: the file fails to load, or registers nothing of that kind and name.
    """
    host = Host()
    host.load(file_source(file), lambda: import_file(file))
    for broken in host.broken:
        raise PluginFault(f"{file} failed to load: {broken.reason}")
    try:
        params = host.find(base.kind, name).params
    except LookupError as error:
        raise PluginFault(f"{file}: {error}") from None
    assert issubclass(params, base)  # checked when it was registered
    return params


class Checks:
    """The checks of one plugin; the first that fails is raised.

    Raises:
        PluginFault: it is no plugin of the kind, or a parameter has neither default nor
            description.
    """

    def __init__(self, params: PluginParams, base: type[PluginParams]) -> None:
        if not isinstance(params, base):
            shown = f"the class {params.__name__}" if isinstance(params, type) else repr(params)
            raise PluginFault(f"{shown} is no instance of a {base.__name__}")
        plugin = type(params)
        self.name = plugin.__name__
        line = f", line {first}" if (first := class_line(plugin)) else ""
        module = inspect.getmodule(plugin)
        self._location = f"{getattr(module, '__file__', plugin.__module__)}{line}"
        self.that(has_docstring(plugin), "docstring", "the class has none")
        taken = reserved(params.kind)
        for name, field in plugin.model_fields.items():
            explained = field.description or not field.is_required()
            self.that(explained, "parameters", f"'{name}' has neither default nor description")
            self.that(name not in taken, "parameters", f"none can be named '{name}'")

    def that(self, right: Any, aspect: str, problem: str) -> None:
        """Raise a fault unless `right`, which may be a tensor of one element, is true."""
        if not right:
            raise PluginFault(f"{self.name} ({self._location}): {aspect}: {problem}")

    @contextmanager
    def running(self, aspect: str) -> Iterator[None]:
        """Turn what the plugin's own code raises into a fault."""
        try:
            with contained():
                yield
        except Exception as error:
            problem = f"raises {type(error).__name__}: {error}"
            raise PluginFault(f"{self.name} ({self._location}): {aspect}: {problem}") from error

    def reloaded(self, saved: Any, into: Any) -> None:
        """Save a state to a checkpoint file, which takes tensors and plain values, and load it."""
        with TemporaryDirectory() as folder, self.running("checkpoint"):
            file = Path(folder) / "state.pt"
            checkpoint.save({"state": saved.state_dict()}, file)
            into.load_state_dict(checkpoint.load(file)["state"])


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and torch's random generators."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = checkpoint.random_state(device)
    try:
        yield
    finally:
        checkpoint.restore_random_state(state, device)


def tiny_batch(shape: tuple[int, ...], vocabulary: int | None = None) -> torch.Tensor:
    """Eight samples that are easy to separate: float32, each noise around its own mean.

    With a vocabulary they are random token ids, int64, the least and the greatest among them.
    """
    generator = torch.Generator().manual_seed(0)
    if vocabulary is not None:
        ids = torch.randint(vocabulary, (SAMPLES, *shape), generator=generator)
        ids[0, 0], ids[1, 0] = 0, vocabulary - 1
        return ids
    means = torch.randn(SAMPLES, shape[0], *(1 for _ in shape[1:]), generator=generator)
    return means + 0.5 * torch.randn(SAMPLES, *shape, generator=generator)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have one shape and equal elements, NaN equal to NaN."""
    return first.shape == second.shape and first.nan_to_num().equal(second.nan_to_num())
