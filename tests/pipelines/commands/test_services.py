"""The commands of the services: the name of what is scheduled or deployed."""

import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines.commands.services import check_name


def test_a_name_is_the_presets_unless_it_is_given():
    assert check_name(None, None) == "digits"
    assert check_name(None, "train.epochs=3") == "digits"
    assert check_name(None, "some/where/night.yaml") == "night"
    assert check_name("nightly", "digits") == "nightly"
    for name in ("", " ", "a/b", "50%"):
        with pytest.raises(UserError, match="--name"):
            check_name(name, None)
