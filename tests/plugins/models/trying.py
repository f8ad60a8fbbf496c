"""Building a model as a run tries it out, for the tests of this folder."""

import pytest

from torchyard import SampleSpec, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.network import dry_run


def params(name, **chosen):
    return host().find("model", name).params.model_validate(chosen)


def parameters(name, shape, classes, **chosen):
    return dry_run(params(name, **chosen), SampleSpec(shape, classes), name).parameters


def refusal(name, shape, classes=7):
    with pytest.raises(UserError) as caught:
        parameters(name, shape, classes)
    [problem] = caught.value.problems
    beginning = f"model: '{name}' cannot take samples of {'x'.join(map(str, shape))}: "
    assert problem.startswith(beginning)
    return problem.removeprefix(beginning)
