"""Plugins that the tests of this folder share."""

import textwrap

from torchyard import hookimpl
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import Source

TINY = '''\
from torchyard import ModelParams, hookimpl

class Tiny(ModelParams):
    """One hidden layer."""
    width: int = 8

    def build(self, input_shape, num_classes):
        from math import prod
        from torch import nn
        features = prod(input_shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, self.width), nn.ReLU(),
                             nn.Linear(self.width, num_classes))

@hookimpl
def register_models(register):
    register("tiny", Tiny)
'''

NEVER_BUILT = '''\
from torchyard import ModelParams, hookimpl

class Tiny(ModelParams):
    """One layer."""
    width: int = 8

    def build(self, input_shape, num_classes):
        raise AssertionError("not built")

@hookimpl
def register_models(register):
    register("tiny", Tiny)
'''


def loaded():
    """The plugins of this process, all of them imported."""
    host().load_all()
    return host()


def write(folder, name, text):
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


def plugin(name, hooks):
    """An object with hooks, as pluggy takes one."""
    return type(name, (), {hook: hookimpl(staticmethod(function)) for hook, function in hooks})


def registering(kind, *names, params=None):
    class Thing(params or KINDS[kind]):
        """A thing that is never built."""

        def build(self, *arguments):
            raise AssertionError("not built")

    def hook(register):
        for name in names:
            register(name, Thing)

    return plugin("Given", [(HOOKS[kind], hook)])


def source(name):
    return Source(name, f"{name} 1.0", f"{name}==1.0")


def names(of, kind):
    return [name for name, _ in of.registrations(kind)]
