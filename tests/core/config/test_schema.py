"""The host's own settings: what they accept."""

import pytest

from tests.core.config.reading import problems, read


def test_a_seed_that_torch_cannot_take_is_refused(small):
    assert problems(small, f"train.seed={2**64}")


@pytest.mark.parametrize("setting", ["optimizer.lr", "train.clip_norm"])
def test_an_infinite_setting_is_refused(small, setting):
    assert problems(small, f"{setting}=inf")


@pytest.mark.parametrize(
    "name",
    [
        *("a'b", 'a"b', "a`b", "a\\b", "a/b", "a:b", "a@b", "a\x1b[2Jb", "a\u202eb", "a\nb"),
        *(" a", "..", "", "x" * 257),
    ],
)
def test_a_registered_models_name_is_checked_before_any_work(small, name):
    assert problems(small, f"promote.model={name}")


@pytest.mark.parametrize("name", ["digits", "猫 & dogs (v2)", "a.b-c_d", "%"])
def test_a_registered_models_name_may_have_letters_of_any_script(small, name):
    config = read(small, f"promote.model={name}").config
    assert config.promote is not None
    assert config.promote.model == name
