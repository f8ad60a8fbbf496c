"""A small configuration in a file."""

import pytest

from tests.core.config.reading import SMALL


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return str(file)
