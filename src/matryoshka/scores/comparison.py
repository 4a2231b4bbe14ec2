"""What several coders scored, side by side: one entry a coder (or a recipe's seeds), one column a score.

    entries → columns; entries after the first → differences from it → verdicts

Two entries are compared unit by unit where both are one coder, by their spread where both are several seeds:

    difference    a − b, the same resampled units for both where the units are the same, otherwise each its own
    detectable    (z₀.₉₇₅ + z₀.₈₀) · standard error of the difference: what such a comparison finds four times in five
    seeds         the mean of several coders of one recipe ± their standard deviation, compared by Welch's t

A difference that zero may explain is said to be inside the noise. A measure that depends on what is written
(`Measure.of_target`) is of another thing at another site or in another model: there nobody is better or worse.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from matryoshka.scores.intervals import CONFIDENCE, percentiles, ratio, resampled_ratios, resampled_sums
from matryoshka.scores.result import Measure, Result, Score

POWER = 0.8
ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


class Target(NamedTuple):
    """What a coder's reconstruction is of."""

    model: str
    sites: tuple[str, ...]
    """Those that it writes."""


class Entry(NamedTuple):
    """A row: what one coder scored, or the coders of a recipe that differ in their seeds alone."""

    label: str
    seeds: Sequence[Mapping[str, Result]]
    """The results of each coder, by the evaluation's name."""
    target: Target

    def widths(self) -> list[int]:
        """The prefixes that anything was measured of, ascending."""
        scores = (score for results in self.seeds for result in results.values() for score in result.scores)
        return sorted({score.width for score in scores})

    def scores(self, column: "ScoreColumn", width: int | None = None) -> list[Score]:
        """The score of each seed, of the prefix `width` (default: the whole dictionary); [] where one lacks it."""
        of_seeds = []
        for results in self.seeds:
            result = results.get(column.evaluation, Result(()))
            of = [score for score in result.scores if score.measure.name == column.measure.name]
            of_seeds += [score for score in of if score.width == (width or max(other.width for other in of))]
        return of_seeds if len(of_seeds) == len(self.seeds) else []


class ScoreColumn(NamedTuple):
    """A score of one evaluation."""

    evaluation: str
    measure: Measure
    ambiguous: bool
    """Another evaluation has a score of this name."""

    @property
    def head(self) -> str:
        """Its name, and which way is better."""
        name = f"{self.evaluation}: {self.measure.name}" if self.ambiguous else self.measure.name
        return name + ARROWS[self.measure.better]


def columns(entries: Sequence[Entry], headlines: bool = True) -> list[ScoreColumn]:
    """The scores that any entry has, in the order of the evaluations; `headlines`: only those for the table."""
    measures: dict[tuple[str, str], Measure] = {}
    for results in (results for entry in entries for results in entry.seeds):
        for evaluation, result in results.items():
            measures |= {(evaluation, score.measure.name): score.measure for score in result.scores}
    names = [name for _, name in measures]
    return [
        ScoreColumn(evaluation, measure, names.count(name) > 1)
        for (evaluation, name), measure in measures.items()
        if measure.headline or not headlines
    ]


# --- two scores


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


# --- entries


class Difference(NamedTuple):
    """How far an entry lies from the first one, in one column."""

    column: ScoreColumn
    entry: Entry
    comparison: Comparison | None
    reason: str
    """Why they are not compared."""

    @property
    def inside_noise(self) -> bool:
        """Whether they are compared, and nobody can tell them apart."""
        return self.comparison is not None and self.comparison.inside_noise


def differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    """Each entry after the first, held against it, column by column."""
    for entry, column in product(entries[1:], columns(entries)):
        comparison, reason = None, ""
        try:
            comparison = _compared(column, entries[0], entry)
        except ValueError as error:
            reason = str(error)
        yield Difference(column, entry, comparison, reason)


def _compared(column: ScoreColumn, first: Entry, entry: Entry) -> Comparison:
    """Raises ValueError that says why they are not comparable."""
    a, b, target, other = entry.scores(column), first.scores(column), first.target, entry.target
    if not a or not b:
        raise ValueError("not measured of both")
    if column.measure.of_target and target.model != other.model:
        raise ValueError(f"they are of different models: {target.model}, {other.model}")
    if column.measure.of_target and set(target.sites) != set(other.sites):
        raise ValueError(f"they write different sites: {' + '.join(target.sites)}, {' + '.join(other.sites)}")
    if (len(a) > 1) != (len(b) > 1):
        raise ValueError(f"{len(a)} against {len(b)} seeds")
    comparison = compare_seeds(a, b) if len(a) > 1 else compare(a[0], b[0])
    if not comparison.known:
        raise ValueError("one number each, of unknown spread: train several seeds")
    return comparison


def verdict(difference: Difference) -> str:
    """In words: which is better, or that nobody can tell."""
    comparison, measure = difference.comparison, difference.column.measure
    if comparison is None:
        return f"not compared ({difference.reason})"
    if comparison.inside_noise:
        return "inside the noise"
    if measure.better == "neither":
        return "differs"
    return "better" if (comparison.difference > 0) == (measure.better == "higher") else "worse"


def reasons(entries: Sequence[Entry]) -> list[str]:
    """Why evaluations found nothing, each once."""
    labels: dict[str, list[str]] = {}
    for entry in entries:
        for name, result in (item for results in entry.seeds for item in results.items()):
            if result.reason:
                labels.setdefault(f"{name}: {result.reason}", []).append(entry.label)
    return [f"{reason} ({', '.join(dict.fromkeys(whose))})" for reason, whose in labels.items()]


def tidy(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row a score: its entry, seed (a number), evaluation, prefix, value, interval and null."""
    return [
        {"entry": entry.label, "seed": seed, "evaluation": name, **score.as_json()}
        for entry in entries
        for seed, results in enumerate(entry.seeds)
        for name, result in results.items()
        for score in result.scores
    ]
