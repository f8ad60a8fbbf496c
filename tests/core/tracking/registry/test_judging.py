"""Gates that judge: what they say, and what becomes of whatever they raise or return."""

import sys

import numpy as np

from tests.core.tracking.registry.candidates import BEATS, champion, gates, run
from torchyard import GateParams, Verdict
from torchyard.core.tracking.registry.champions import promote


def test_all_gates_are_asked_and_all_must_let_pass(client, prepared):
    strict = ("min_accuracy", {"threshold": 0.9})
    judged = promote(
        client, run(client, prepared, 30), "toy", gates(("beats_champion", {}), strict)
    )
    assert [(name, verdict.passed) for name, verdict in judged.verdicts] == [
        ("beats_champion", True),
        ("min_accuracy", False),
    ]
    assert judged.outcome == "not the champion of toy (there is none): refused by min_accuracy"
    assert champion(client) is None


class Broken(GateParams):
    """Raises."""

    def build(self):
        return lambda candidate, champion: 1 / 0


class Wrong(GateParams):
    """Gives something else."""

    def build(self):
        return lambda candidate, champion: True


class Interrupts(GateParams):
    """Raises what only a signal should."""

    def build(self):
        raise KeyboardInterrupt


class Exits(GateParams):
    """Asks Python to end."""

    def build(self):
        return lambda candidate, champion: sys.exit(0)


class Vague(GateParams):
    """Its verdict is neither yes nor no."""

    def build(self):
        return lambda candidate, champion: Verdict("no", "who knows")


class Numpys(GateParams):
    """Its verdict and figures are NumPy's."""

    def build(self):
        figures = {"accuracy": np.float32(0.5)}
        return lambda candidate, champion: Verdict(np.bool_(True), "as computed", figures)


def test_whatever_a_gate_raises_or_returns_is_a_verdict(client, prepared):
    all_of_them = [(each.__name__, each()) for each in (Interrupts, Exits, Vague, Numpys)]
    judged = promote(client, run(client, prepared, 35), "toy", all_of_them)
    assert [verdict.reason for _, verdict in judged.verdicts] == [
        "it could not judge: KeyboardInterrupt: ",
        "it could not judge: SystemExit: 0",
        "it could not judge: TypeError: 'passed' of its Verdict is 'no'",
        "as computed",
    ]
    assert champion(client) is None


def test_a_gate_that_cannot_judge_lets_nothing_pass(client, prepared):
    better = run(client, prepared, 35)
    judged = promote(client, better, "toy", [("broken", Broken()), ("wrong", Wrong())])
    assert [verdict.reason for _, verdict in judged.verdicts] == [
        "it could not judge: ZeroDivisionError: division by zero",
        "it could not judge: TypeError: it returned a bool, not a Verdict",
    ]
    assert champion(client) is None


def test_other_test_data_do_not_beat_a_champion(client, prepared):
    promote(client, run(client, prepared, 30), "toy", BEATS)
    judged = promote(client, run(client, prepared, 40, "other"), "toy", BEATS)
    assert judged.version is None
    assert "tested on different samples" in judged.verdicts[0][1].reason
