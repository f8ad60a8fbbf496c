"""Job variables: read, typed by the pool's template, refused with every problem."""

from __future__ import annotations

import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines.services.scheduling.job_variables import fit_variables, read_variables


def test_job_variables_have_sections():
    found = read_variables(["env.A=1", "env.B=x=y", "working_dir=/tmp", 'labels={"a": 1}'])
    assert found == {"env": {"A": "1", "B": "x=y"}, "working_dir": "/tmp", "labels": {"a": 1}}
    with pytest.raises(UserError) as caught:
        read_variables(["env", "=3", "a=1", "a.b=2"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("env=[", "is neither a list [a, b] nor a mapping {a: b}"),
        ("env={a: b", "is neither a list"),
        ("env={a: &a [*a]}", ""),
        ("env={a: .nan}", "has a value or a key that JSON does not know"),
        ("env={? [a] : b}", ""),
        ("env=" + "[" * 5000, ""),
    ],
)
def test_an_odd_value_is_refused_in_one_line(assignment, says):
    with pytest.raises(UserError) as caught:
        read_variables([assignment])
    [problem] = caught.value.problems
    assert problem.startswith(f"--job-variable: '{assignment}': ")
    assert says in problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 2020-01-01}", {"a": "2020-01-01"}),
        ("{1: b}", {"1": "b"}),
        ("!!python/object:os.system {a: b}", "!!python/object:os.system {a: b}"),
    ],
)
def test_an_odd_value_that_is_plain_is_taken_as_it_is_written(text, value):
    assert read_variables([f"env={text}"]) == {"env": value}


def test_job_variables_are_those_of_the_pool_and_of_their_types():
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    limits = {"properties": {"limit": {"type": "integer"}, "spec": {"$ref": "#/definitions/S"}}}
    limits["definitions"] = {"S": {"type": "object", "required": ["a"]}}
    given = ["env.A=1", "stream_output=False", "working_dir=/tmp", "name={{ prefect.x }}"]
    assert fit_variables(read_variables(given), template) == {
        "env": {"A": "1"}, "stream_output": False, "working_dir": "/tmp", "name": "{{ prefect.x }}",
    }  # fmt: skip
    given = ["limit=30", "spec={a: 1}"]
    assert fit_variables(read_variables(given), {"variables": limits}) == {
        "limit": 30, "spec": {"a": 1},
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        fit_variables(
            read_variables(["env={A: 1}", "workingdir=/tmp", "stream_output=7", "labels=x"]),
            template,
        )
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "--job-variable: env.A: 1 is not valid" in problems
    assert "no variable 'workingdir'. Did you mean 'working_dir'?" in problems
    assert "--job-variable: stream_output: '7' is not of type 'boolean'" in problems
    assert "--job-variable: labels: 'x' is not of type 'object'" in problems


def test_a_variable_is_given_once():
    with pytest.raises(UserError) as caught:
        read_variables(["env.A=1", "env={B: 2}", "name=x", "name=y"])
    assert len(caught.value.problems) == 2
