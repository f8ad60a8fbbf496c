"""The host's own settings: what they accept."""

import pytest

from tests.core.config.reading import problems


def test_a_seed_that_torch_cannot_take_is_refused(small):
    assert problems(small, f"train.seed={2**64}")


@pytest.mark.parametrize("setting", ["optimizer.lr", "train.clip_norm"])
def test_an_infinite_setting_is_refused(small, setting):
    assert problems(small, f"{setting}=inf")
