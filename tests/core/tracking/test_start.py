"""Which runs cannot go on."""

import pytest

from torchyard.core.errors import UserError
from torchyard.core.tracking.record import RunRecord


def test_a_run_of_version_0_1_is_not_resumed(record: RunRecord) -> None:
    record.finish("KILLED")
    (record.folder / "journal.jsonl").touch()
    with pytest.raises(UserError, match=r"was begun by torchyard 0\.1"):
        RunRecord.resume(record.run_id)
