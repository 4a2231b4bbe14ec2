"""How two scores compare, of one coder each or of several seeds.

difference    a − b, the same resampled units for both where the units are the same, otherwise each its own
detectable    (z₀.₉₇₅ + z₀.₈₀) · standard error of the difference: what such a comparison finds four times in five
seeds         the mean of several coders of one recipe ± their standard deviation, compared by Welch's t
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from matryoshka.scores.intervals import CONFIDENCE, percentiles, ratio, resampled_ratios, resampled_sums
from matryoshka.scores.result import Score

POWER = 0.8


class Spread(NamedTuple):
    """Several seeds of one recipe."""

    mean: float
    deviation: float
    """Sample standard deviation; NaN of one."""
    seeds: int


def over_seeds(scores: Sequence[Score]) -> Spread:
    """The mean and the spread of one score over the coders of a recipe that differ in their seeds alone."""
    values = [score.value for score in scores]
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


class Comparison(NamedTuple):
    """How far `a` lies above `b`."""

    difference: float
    low: float
    high: float
    detectable: float
    """The least true difference that such a comparison finds with a chance of POWER."""

    @property
    def known(self) -> bool:
        """Whether the units say anything about its spread."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def inside_noise(self) -> bool:
        """Whether zero lies in the interval: the two may as well be equal."""
        return not (self.low > 0 or self.high < 0)


def compare(a: Score, b: Score) -> Comparison:
    """a − b, of the units that both have where these are the same, otherwise of each one's own.

    Raises ValueError for scores of different measures, or of no common unit where they should be the same.
    """
    if a.measure != b.measure:
        raise ValueError(f"{a.measure.name} and {b.measure.name} do not compare")
    if a.measure.paired:
        known = set(b.units)
        common = [unit for unit in a.units if unit in known]
        if not common:
            raise ValueError(f"{a.measure.name}: the two have no {a.measure.unit} in common")
        a, b = a.of(common), b.of(common)
        sums = resampled_sums(np.stack([a.numerator, a.denominator, b.numerator, b.denominator]))
        differences = ratio(sums[0], sums[1]) - ratio(sums[2], sums[3])
    else:
        differences = resampled_ratios(a.numerator, a.denominator) - resampled_ratios(b.numerator, b.denominator, 1)
    low, high = percentiles(differences)
    quantiles = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) + statistics.NormalDist().inv_cdf(POWER)
    return Comparison(a.value - b.value, low, high, quantiles * float(np.std(differences, ddof=1)))


def compare_seeds(a: Sequence[Score], b: Sequence[Score]) -> Comparison:
    """Mean over the seeds of `a` less that of `b`, by Welch's t; at least two seeds each."""
    first, second = over_seeds(a), over_seeds(b)
    parts = [spread.deviation**2 / spread.seeds for spread in (first, second)]
    error = math.sqrt(sum(parts))
    weights = sum(part**2 / (spread.seeds - 1) for part, spread in zip(parts, (first, second), strict=True))
    freedom = sum(parts) ** 2 / weights if weights else math.inf
    t = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
    difference = first.mean - second.mean
    detectable = (t + float(stdtrit(freedom, POWER))) * error
    return Comparison(difference, difference - t * error, difference + t * error, detectable)
