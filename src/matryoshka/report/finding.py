"""One sentence of what was found, and how far it stands out from chance."""

from typing import NamedTuple

from matryoshka.scores.result import Score


class Finding(NamedTuple):
    """A sentence with its number, interval and null; the strongest of all analyses open a report."""

    sentence: str
    """Markdown."""
    strength: float
    """Distance of the value from its null in half widths of its interval."""


def strength(score: Score) -> float:
    """|value − null| / (half the interval's width); 0 where there is no null or no interval."""
    low, high = score.interval
    if score.null is None or not high > low:
        return 0.0
    return abs(score.value - score.null) / ((high - low) / 2)
