"""Errors hold every problem, and suggest the name that was meant."""

from __future__ import annotations

from torchyard.core.errors import RunError, UserError, suggestion


def test_a_user_error_has_a_line_for_every_problem() -> None:
    assert UserError("one").problems == ["one"]
    error = UserError(f"problem {number}" for number in (1, 2))
    assert error.problems == ["problem 1", "problem 2"]
    assert str(error) == "problem 1\nproblem 2"


def test_the_details_of_a_failed_run_are_no_part_of_its_message() -> None:
    error = RunError("it failed", details="a traceback")
    assert (str(error), error.details) == ("it failed", "a traceback")


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    assert suggestion("adm", ["adam", "sgd"]) == " Did you mean 'adam'?  (accepts: adam, sgd)"
    assert suggestion("adm", ["adam"], {"adam": "optimizer.adam"}) == (
        " Did you mean 'optimizer.adam'?  (accepts: adam)"
    )
    assert suggestion("unlike any", ["adam"]) == "  (accepts: adam)"
    assert suggestion("adam", []) == "  (accepts: none)"
