"""What an evaluation says: scores with an interval and a null, and how two of them compare.

Every score is Σ numerator / Σ denominator over *units* that are independent of one another: documents, words, labels,
features. So one bootstrap over units gives all intervals, and coders that were measured on the same units are compared
unit by unit:

    interval      percentiles of the ratio over resampled units (Efron 1979)
    difference    a − b, the same resampled units for both where the units are the same, otherwise each its own
    detectable    (z₀.₉₇₅ + z₀.₈₀) · standard error of the difference: what such a comparison finds four times in five
    seeds         the mean of several coders of one recipe ± their standard deviation, compared by Welch's t
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from matryoshka.errors import MatryoshkaError, did_you_mean

RESAMPLES = 1000
CONFIDENCE = 0.95
POWER = 0.8
BLOCK_DRAWS = 4_000_000
"""Units drawn at once: 32 MB."""


@dataclass(frozen=True)
class Measure:
    """What a score means: the head of its column."""

    name: str
    """As tables show it, such as "CE recovered"."""
    better: Literal["lower", "higher", "neither"]
    meaning: str
    """One sentence, with its formula, for the report's legend."""
    unit: str = "document"
    """What is resampled; a count of the whole dictionary has one unit, and so no interval."""
    null: str = ""
    """What its null is, in words; empty if it has none."""
    paired: bool = True
    """Whether two coders are measured on the same units (features are each coder's own)."""
    headline: bool = True
    """Whether it is a column of the table, and not only a line of the report."""
    percent: bool = False
    """Shown as a percentage."""


class NotMeasurable(MatryoshkaError):
    """This evaluation says nothing about this coder or model, and why; others may."""


class Interval(NamedTuple):
    """CONFIDENCE of the resampled values lie within."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Score:
    """One number, and the units that it is made of."""

    measure: Measure
    width: int
    """The prefix of the dictionary that it is about."""
    units: tuple[str, ...]
    """The units' names, the same for the same unit in every evaluation: by them two coders are paired."""
    numerator: Float[np.ndarray, " units"]
    denominator: Float[np.ndarray, " units"]
    null: float | None = None

    @cached_property
    def value(self) -> float:
        """Σ numerator / Σ denominator; NaN without units."""
        return _ratio(self.numerator.sum(), self.denominator.sum())

    @cached_property
    def interval(self) -> Interval:
        """Of the value, by resampling units. NaN where a single unit says nothing about its spread."""
        return _percentiles(_resampled_ratios(self.numerator, self.denominator))

    def of(self, units: Sequence[str]) -> "Score":
        """The same of these units alone, in this order."""
        place = {unit: i for i, unit in enumerate(self.units)}
        chosen = [place[unit] for unit in units]
        return Score(
            self.measure, self.width, tuple(units), self.numerator[chosen], self.denominator[chosen], self.null
        )

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, None where there is none."""
        return {
            "name": self.measure.name,
            "width": self.width,
            "value": finite(self.value),
            "low": finite(self.interval.low),
            "high": finite(self.interval.high),
            "null": None if self.null is None else finite(self.null),
            "unit": self.measure.unit,
            "units": len(self.units),
        }


@dataclass(frozen=True)
class Result:
    """What one evaluation found of one coder."""

    scores: tuple[Score, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the report and other programs may want besides: histograms, tables, settings; plain JSON values."""
    reason: str | None = None
    """Why there are no scores, where NotMeasurable was raised."""

    def of(self, name: str) -> list[Score]:
        """The scores of the measure `name`, one for each prefix, ascending. Raises MatryoshkaError if it has none."""
        if not (found := [each for each in self.scores if each.measure.name == name]):
            known = list(dict.fromkeys(each.measure.name for each in self.scores))
            raise MatryoshkaError(f"no score {name!r} here{did_you_mean(name, known)}")
        return found

    def values(self, name: str) -> list[float]:
        """Their values."""
        return [each.value for each in self.of(name)]


def score(
    measure: Measure,
    width: int,
    units: Iterable[object],
    numerator: Iterable[int | float] | np.ndarray,
    denominator: Iterable[int | float] | np.ndarray | None = None,
    null: int | float | None = None,
) -> Score:
    """A Score; without `denominator` the mean of the numerators."""
    names = tuple(map(str, units))
    above = np.asarray(list(numerator), dtype=np.float64)
    below = np.ones_like(above) if denominator is None else np.asarray(list(denominator), dtype=np.float64)
    if not len(names) == len(set(names)) == len(above) == len(below):
        raise ValueError(f"{measure.name}: {len(names)} units, {len(set(names))} names, {len(above)} numbers")
    return Score(measure, width, names, above, below, None if null is None else float(null))


class Spread(NamedTuple):
    """Several seeds of one recipe."""

    mean: float
    deviation: float
    """Sample standard deviation; NaN of one."""
    seeds: int


def over_seeds(scores: Sequence[Score]) -> Spread:
    """The mean and the spread of one score over the coders of a recipe that differ in their seeds alone."""
    values = [each.value for each in scores]
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
        sums = _resampled_sums(np.stack([a.numerator, a.denominator, b.numerator, b.denominator]))
        differences = _ratio(sums[0], sums[1]) - _ratio(sums[2], sums[3])
    else:
        differences = _resampled_ratios(a.numerator, a.denominator) - _resampled_ratios(b.numerator, b.denominator, 1)
    low, high = _percentiles(differences)
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


def _resampled_ratios(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> Float[np.ndarray, " resamples"]:
    return _ratio(*_resampled_sums(np.stack([numerator, denominator]), seed))


def _resampled_sums(
    columns: Float[np.ndarray, "columns units"], seed: int = 0
) -> Float[np.ndarray, "columns resamples"]:
    """The columns summed over as many units drawn with replacement, the same ones for all columns, RESAMPLES times."""
    units = columns.shape[1]
    sums = np.full((len(columns), RESAMPLES), math.nan)
    if units < 2:
        return sums
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_DRAWS // units)
    for start in range(0, RESAMPLES, block):
        draws = generator.integers(0, units, (min(block, RESAMPLES - start), units))
        sums[:, start : start + block] = columns[:, draws].sum(-1)
    return sums


def _percentiles(values: Float[np.ndarray, " n"]) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.divide(above, below)
    return float(found) if np.ndim(found) == 0 else found


def finite(value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return value if math.isfinite(value) else None
