"""What is said of a run that did not finish."""

import pytest

from torchyard.core.errors import DivergedError, RunError, UnreachableError, UserError
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.pipelines.commands.outcome import print_notes


@pytest.mark.parametrize(
    ("error", "hinted"),
    [
        (RunError("it failed"), True),
        (UnreachableError("it does not answer"), True),
        (UserError("it is wrong"), False),
        (DivergedError("the loss became nan"), False),  # it would again
        (TakenOverError("another process has it"), False),  # to resume would take it back
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_to_go_on_is_said_where_that_helps(capsys, error, hinted):
    error.add_note("Recorded as FAILED: lenet #1")
    print_notes(error)
    said = capsys.readouterr().err
    assert "Recorded as FAILED: lenet #1" in said
    assert ("`torchyard resume latest` resumes it." in said) == hinted
