"""How often the test samples were asked, and gates that are told."""

import threading

from tests.core.tracking.registry.candidates import BEATS, run
from torchyard import GateParams, Verdict
from torchyard.core.tracking.registry.asks import asks
from torchyard.core.tracking.registry.champions import judge, promote


class Told(GateParams):
    """Passes, and says how often the test samples were asked."""

    number: int = 0

    def with_ask(self, number):
        return Told(number=number)

    def build(self):
        return lambda candidate, champion: Verdict(False, f"ask {self.number}")


def test_it_is_counted_how_often_the_test_samples_are_asked(client, prepared):
    told = [("told", Told())]
    first, second, third = (run(client, prepared, right) for right in (30, 31, 32))

    def asked(candidate, **more):
        judged = promote(client, candidate, "toy", told, **more)
        return judged.asked, judged.verdicts[0][1].reason

    assert asked(first) == (0, "ask 0")  # there is no champion to compare with
    promote(client, first, "toy", BEATS)
    assert asked(second) == (1, "ask 1")
    assert asked(second) == (1, "ask 1")  # the same question
    assert asked(third) == (2, "ask 2")
    assert promote(client, third, "toy", BEATS).asked == 2
    assert asked(second) == (3, "ask 3")  # of another champion
    # Chosen among ten by the test samples, it has asked them ten times.
    assert asked(run(client, prepared, 33), chosen_among=10) == (13, "ask 13")
    assert asks(client, "toy") == {"digest": 13}
    # Of other samples nothing has been asked: they do not pair with the champion's.
    assert asked(run(client, prepared, 33, "another")) == (0, "ask 0")
    tags = client.get_run(second.info.run_id).data.tags
    assert tags["torchyard.why"] == "told: ask 3; the test samples were asked 3 times"


def test_two_that_end_at_once_are_both_counted(client, prepared):
    promote(client, run(client, prepared, 30), "toy", BEATS)
    both, numbers = threading.Barrier(2, timeout=60), []

    def judge_together(*asked):
        both.wait()  # each has counted before the other's gates begin to judge
        return judge(*asked)

    def end(candidate):
        judged = promote(client, candidate, "toy", [("told", Told())], judge_together)
        numbers.append(judged.asked)

    threads = [threading.Thread(target=end, args=(run(client, prepared, 31),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) in ([1, 2], [2, 2])  # none takes itself for earlier than it was
    assert asks(client, "toy") == {"digest": 2}


def test_a_gate_that_fails_when_it_is_told_refuses(client, prepared):
    class Deaf(Told):
        """Raises."""

        def with_ask(self, number):
            raise ValueError("no more")

    promote(client, run(client, prepared, 30), "toy", BEATS)
    judged = promote(client, run(client, prepared, 31), "toy", [("deaf", Deaf())])
    assert judged.verdicts[0][1].reason == "it could not judge: ValueError: no more"

    class Gone(Told):
        """Ends the program."""

        def with_ask(self, number):
            raise SystemExit(0)

    judged = promote(client, run(client, prepared, 31), "toy", [("gone", Gone())])
    assert judged.verdicts[0][1].reason == "it could not judge: SystemExit: 0"

    class Forgetful(Told):
        """Returns nothing."""

        def with_ask(self, number):
            pass

    judged = promote(client, run(client, prepared, 31), "toy", [("forgetful", Forgetful())])
    assert judged.verdicts[0][1].reason.endswith("'with_ask' returned a NoneType")
