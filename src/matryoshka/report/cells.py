"""Scores as people read them: a value, how sure it is, and what chance gives."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matryoshka.scores.comparison import Difference, Entry, over_seeds
from matryoshka.scores.result import Measure, Score


class Cell(NamedTuple):
    """A number as people read it: its value, how sure it is, and what chance gives."""

    value: str
    spread: str
    null: str


def cell(scores: Sequence[Score]) -> Cell:
    """Of one coder its value, interval and null; of several seeds the mean ± standard deviation."""
    if not scores:
        return Cell("–", "", "")
    measure = scores[0].measure
    nulls = [score.null for score in scores if score.null is not None]
    null = f"null {shown(math.fsum(nulls) / len(nulls), measure)}" if nulls else ""
    if len(scores) > 1:
        spread = over_seeds(scores)
        return Cell(shown(spread.mean, measure), f"± {shown(spread.deviation, measure)}", null)
    low, high = scores[0].interval
    interval = f"{shown(low, measure)} – {shown(high, measure)}" if math.isfinite(low) else ""
    return Cell(shown(scores[0].value, measure), interval, null)


def shown(value: float, measure: Measure) -> str:
    """With as many digits as mean something to people."""
    if not math.isfinite(value):
        return "–"
    if measure.percent:
        return f"{100 * value:.{1 if value == 0 or abs(value) >= 0.01 else 2}f} %"
    if value == 0 or 0.01 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def numbers(difference: Difference) -> tuple[str, str, str]:
    """The difference, its interval and what is detectable, as people read them."""
    if (comparison := difference.comparison) is None:
        return "–", "–", "–"
    measure = difference.column.measure
    low, high = shown(comparison.low, measure), shown(comparison.high, measure)
    return shown(comparison.difference, measure), f"{low} to {high}", shown(comparison.detectable, measure)


def counted(entry: Entry) -> str:
    """Its label, and how many seeds."""
    return f"{entry.label} ({len(entry.seeds)} seeds)" if len(entry.seeds) > 1 else entry.label
