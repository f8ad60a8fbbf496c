"""The search space: domains as they are written, and what is wrong with them."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from torchyard.core.errors import UserError
from torchyard.core.study.space import Choices, Range, SearchSpace, as_override, parse_domain


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("log(1e-4,1e-1)", Range(1e-4, 0.1, log=True)),
        ("uniform( 0.8 , 0.99 )", Range(0.8, 0.99)),
        ("int(16,128)", Range(16, 128, whole=True)),
        ("int(16,128,log)", Range(16, 128, log=True, whole=True)),
        ("[lenet,resnet18]", Choices(("lenet", "resnet18"))),
        (["lenet", None, True, 3, 0.5], Choices(("lenet", None, True, 3, 0.5))),
        ("[[],[random_crop]]", Choices(([], ["random_crop"]))),
        ("0.1", None),
        ("~/data (new)", None),
        (3, None),
        (None, None),
    ],
)
def test_a_domain_is_read_as_it_is_written(written, domain):
    assert parse_domain("key", written) == domain


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("log(0,1)", "there is no logarithm of 0"),
        ("log(-1,1)", "there is no logarithm of -1"),
        ("uniform(2,1)", "is empty: 2 is above 1"),
        ("uniform(1)", "has not two numbers"),
        ("uniform(1,2,3)", "has not two numbers"),
        ("uniform(low,high)", "has not two numbers"),
        ("uniform(0,inf)", "both ends must be finite"),
        ("uniform(nan,1)", "both ends must be finite"),
        ("int(1.5,2)", "both ends must be integers"),
        ("int(1,2,lg)", "has not two numbers"),
        ("logg(1,2)", "no distribution named 'logg'. Did you mean 'log'?"),
        ("[]", "has no choice"),
        ([], "has no choice"),
        ("[a,a]", "a choice is there twice"),
        ("[a,b", "the list has no end"),
    ],
)
def test_a_malformed_domain_is_refused_in_one_line(written, problem):
    with pytest.raises(UserError) as refused:
        parse_domain("optimizer.lr", written)
    [said] = refused.value.problems
    assert said.startswith("optimizer.lr: ")
    assert problem in said


numbers = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(-(10**9), 10**9)


@given(st.tuples(numbers, numbers).map(sorted))
def test_a_range_is_read_from_what_it_is_written_as(ends):
    domain = Range(*ends)
    assert parse_domain("key", str(domain)) == domain


@given(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)).map(sorted), st.booleans())
def test_a_range_of_integers_is_read_from_what_it_is_written_as(ends, log):
    domain = Range(*ends, log=log, whole=True)
    assert parse_domain("key", str(domain)) == domain


scalars = st.none() | st.booleans() | whole | st.text("abc ", min_size=1)


@given(st.lists(scalars, min_size=1, unique_by=lambda each: (type(each), each)))
def test_the_value_of_a_choice_is_found_by_its_label(values):
    if len(set(values)) < len(values):  # 1 and true, for example
        with pytest.raises(UserError, match="twice"):
            parse_domain("key", values)
        return
    space = SearchSpace({"key": parse_domain("key", values)})
    labels = space.domains["key"].labels
    found = [space.values({"key": label})["key"] for label in labels]
    assert [(type(each), each) for each in found] == [(type(each), each) for each in values]


def test_corners_are_all_combinations_of_the_ends_and_choices():
    space = SearchSpace({"lr": Range(1, 2), "model": Choices(("a", "b", "c")), "one": Range(3, 3)})
    corners = list(space.corners())
    assert len(corners) == len({tuple(each.items()) for each in corners}) == 6
    assert all(each["one"] == 3 for each in corners)


def test_of_a_large_space_every_end_is_among_the_corners():
    space = SearchSpace({f"key{number}": Range(0, number) for number in range(1, 12)})
    corners = list(space.corners())
    assert len(corners) == 12
    assert all(
        {each[key] for each in corners} == set(space.domains[key].ends) for key in corners[0]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "key=1e-05"), ("lenet", "key=lenet"), (True, "key=true"), ([1, "a"], 'key=[1, "a"]')],
)
def test_a_value_is_written_as_an_override(value, text):
    assert as_override("key", value) == text
