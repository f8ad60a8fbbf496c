"""Simulate a year of nightly runs and draw its promotions: `make nightly-year`.

The candidates and the champion are networks that have each of 10,000 test samples right with a
probability of that sample: most are easy, some are a matter of luck, a few are hard. So they
have 94 % right, and of two equal ones each has about 2 % right that the other has wrong, as
networks that are trained twice with other seeds. The gate's own levels decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from torchyard.core.hosting.host import host

NIGHTS = 365
SAMPLES = np.array([9000, 600, 400])  # easy, a matter of luck, hard
CHAMPION = np.array([0.995, 0.70, 0.08])  # probability to have one right
POINT_BETTER = np.array([0.995, 0.70 + 1 / 6, 0.08])  # 600 / 6 samples are a point of 10,000
BETTER_FROM = 200  # the night from which the candidates of the drawing are a point better
GATE = host().find("gate", "beats_champion").params()
LEVELS = np.array([GATE.level(number) for number in range(1, NIGHTS + 1)])

Counts = npt.NDArray[np.int64]


def right(rng: np.random.Generator, years: int, probabilities: npt.NDArray[np.float64]) -> Counts:
    """How many samples of each difficulty a network has right, of so many test sets."""
    return rng.binomial(SAMPLES, probabilities, (years, len(SAMPLES)))


def asked(
    rng: np.random.Generator, champion: Counts, candidate: npt.NDArray[np.float64], nights: int
) -> tuple[Counts, Counts]:
    """Samples that only a candidate, and only the champion has right: years x nights."""
    size = (*champion.shape[:1], nights, len(SAMPLES))
    own = rng.binomial((SAMPLES - champion)[:, None], candidate, size).sum(axis=-1)
    lost = rng.binomial(champion[:, None], 1 - candidate, size).sum(axis=-1)
    return own, lost


def passes(own: Counts, lost: Counts, levels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether the gate lets them pass, as `beats_champion` computes it."""
    return (own > lost) & (bdtr(lost.astype(float), own + lost, 0.5) <= levels)


def false_promotions(years: int, seed: int = 0) -> float:
    """The share of years with a promotion, where every candidate equals the champion."""
    rng = np.random.default_rng(seed)
    own, lost = asked(rng, right(rng, years, CHAMPION), CHAMPION, NIGHTS)
    return float(passes(own, lost, LEVELS).any(axis=1).mean())


def power(number: int, years: int, seed: int = 0) -> float:
    """The share of candidates that are a point better and promoted by the `number`-th ask."""
    rng = np.random.default_rng(seed)
    own, lost = asked(rng, right(rng, years, CHAMPION), POINT_BETTER, 1)
    return float(passes(own, lost, np.array([GATE.level(number)])).mean())


def drawn_year(by_chance: bool, seed: int = 4) -> Iterator[tuple[int, int, bool]]:
    """The nights of one year: own samples, the champion's own, and whether it is promoted.

    Args:
        by_chance: whether any lead is enough, as without `significance`.
    """
    rng = np.random.default_rng(seed)
    champion = right(rng, 1, CHAMPION)
    for night in range(NIGHTS):
        probabilities = CHAMPION if night < BETTER_FROM else POINT_BETTER
        kept = rng.binomial(champion, probabilities)
        gained = rng.binomial(SAMPLES - champion, probabilities)
        own, lost = np.array([gained.sum()]), np.array([(champion - kept).sum()])
        better = (own > lost) if by_chance else passes(own, lost, LEVELS[night : night + 1])
        yield int(own[0]), int(lost[0]), bool(better[0])
        if better[0]:
            champion = kept + gained


WIDTH, PANEL, LEFT, TOP, REACH = 860, 150, 54, 44, 160  # REACH: samples up and down


def drawing() -> str:
    """The year as an SVG, once with any lead enough and once with the gate as it is."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * (PANEL + TOP) + 30}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for panel, by_chance in enumerate((True, False)):
        parts += _panel(by_chance, TOP + panel * (PANEL + TOP))
    parts.append(
        f'<text x="{LEFT}" y="{2 * (PANEL + TOP) + 20}" fill="#555">A point: a night’s candidate; '
        "height: by how many of 10,000 test samples it leads the champion of that night; red: "
        "promoted.</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def _panel(by_chance: bool, top: int) -> Iterator[str]:
    nights = list(drawn_year(by_chance))
    promoted = [night for night, (_, _, better) in enumerate(nights) if better]
    false = sum(night < BETTER_FROM for night in promoted)
    rule = "Any lead is enough" if by_chance else "beats_champion as it is by default"
    before = f"{false or 'none'} before night {BETTER_FROM + 1}"
    promotions = f"{len(promoted)} promotion{'s' * (len(promoted) != 1)}"
    yield (
        f'<text x="{LEFT}" y="{top - 10}" font-size="14" fill="#111">'
        f"{rule}: {promotions}, {before}, when the recipe becomes a point better</text>"
    )
    yield (
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - 16}" height="{PANEL}" '
        'fill="none" stroke="#bbb"/>'
    )
    for lead, written in ((-100, "−100"), (0, "0"), (100, "+100")):
        y = _height(lead, top)
        yield f'<path d="M{LEFT} {y}H{WIDTH - 16}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#555">{written}</text>'
    x = _place(BETTER_FROM)
    yield f'<path d="M{x} {top}V{top + PANEL}" stroke="#888" stroke-dasharray="4 3"/>'
    for night, (own, lost, better) in enumerate(nights):
        y = _height(max(-REACH, min(REACH, own - lost)), top)
        look = 'r="4.5" fill="#c0392b"' if better else 'r="1.8" fill="#4a78a8"'
        yield f'<circle cx="{_place(night)}" cy="{y}" {look}/>'


def _place(night: int) -> float:
    return round(LEFT + 6 + night * (WIDTH - LEFT - 28) / NIGHTS, 1)


def _height(lead: int, top: int) -> float:
    return round(top + PANEL / 2 * (1 - lead / REACH), 1)


if __name__ == "__main__":
    target = Path(__file__).parent / "images" / "nightly_year.svg"
    target.write_text(drawing(), "utf-8")
    print(f"years with a false promotion: {false_promotions(4000):.1%}")
    for number in (1, NIGHTS, 400, 450, 500, 600, 730):
        print(f"power at ask {number}: {power(number, 20_000):.1%}")
