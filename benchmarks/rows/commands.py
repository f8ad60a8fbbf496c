"""How soon the commands answer that train nothing."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.comparison import Comparison, Series, Target, alternate
from benchmarks.home import OURS

TITLE = "Commands that train nothing: whole process"
LIMIT = 0.5


def measure(bench: Bench) -> tuple[list[Comparison], list[str]]:
    """Help, listing, a configuration error; beside Python's own start."""
    with bench.home("commands") as home:
        contenders = {
            "torchyard --help": lambda: home.torchyard("--help").seconds,
            "torchyard plugins": lambda: home.torchyard("plugins").seconds,
            "a configuration error": lambda: (
                home.torchyard("run", "digits", "model=resnet81", status=2).seconds
            ),
            "python -c pass": lambda: home.run(str(OURS), "-c", "pass").seconds,
        }
        alternate(1, contenders, lambda text: bench.say(f"warm-up, {text}"))
        found = alternate(bench.rounds(5), contenders, bench.say)
    targets = [
        Target(f"`{name}` ≤ {LIMIT} s", name, LIMIT, at_least=False)
        for name in contenders
        if name != "python -c pass"
    ]
    series = tuple(Series(name, tuple(values)) for name, values in found.items())
    table = Comparison("Seconds of the whole process", "seconds", False, series, tuple(targets))
    return [table], ["The configuration error is `torchyard run digits model=resnet81`."]
