"""Whether one feature covers another: whether it fires on most tokens on which the other does, and not by chance.

    coverage    P(parent fires | child fires), its lower bound ≥ ½ (Wilson 1927, 95 %)
    lift        P(parent | child) / P(parent) ≥ 2: a feature that fires on most tokens covers nobody

The functions take arrays of numpy and of torch alike.
"""

from typing import Any

COVERAGE, LIFT, Z = 0.5, 2.0, 1.96
PARENTS = 5
"""Of each feature that are kept: those with the largest Jaccard index."""


def wilson_lower(share: Any, trials: Any) -> Any:
    """The lower end of the 95 % interval of a share that was seen in so many trials; the upper end is
    1 − wilson_lower(1 − share, trials)."""
    z = Z**2 / trials
    spread = Z * ((share * (1 - share) + z / 4) / trials) ** 0.5
    return (share + z / 2 - spread) / (1 + z)


def covers(coverage: Any, trials: Any, firings: Any, rows: int) -> Any:
    """Whether parents that fire on `firings` of all `rows` cover children, `coverage` of whose `trials` firings were
    seen to be theirs too."""
    return (wilson_lower(coverage, trials) >= COVERAGE) & (coverage * rows >= LIFT * firings)
