"""What an evaluation says: scores with an interval and a null.

Every score is Σ numerator / Σ denominator over *units* that are independent of one another: documents, words, labels,
features. So one bootstrap over units gives all intervals (`intervals`), and coders that were measured on the same units
are compared unit by unit (`comparison`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.scores.intervals import Interval, percentiles, ratio, resampled_ratios


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
    of_target: bool = False
    """Whether it depends on where a coder writes: coders of different written sites are then not compared by it."""


class NotMeasurable(MatryoshkaError):
    """This evaluation says nothing about this coder or model, and why; others may."""


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
        return ratio(self.numerator.sum(), self.denominator.sum())

    @cached_property
    def interval(self) -> Interval:
        """Of the value, by resampling units. NaN where a single unit says nothing about its spread."""
        return percentiles(resampled_ratios(self.numerator, self.denominator))

    def of(self, units: Sequence[str]) -> "Score":
        """The same of these units alone, in this order."""
        place = {unit: i for i, unit in enumerate(self.units)}
        chosen = [place[unit] for unit in units]
        return replace(self, units=tuple(units), numerator=self.numerator[chosen], denominator=self.denominator[chosen])

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
        if not (of_name := [score for score in self.scores if score.measure.name == name]):
            known = list(dict.fromkeys(score.measure.name for score in self.scores))
            raise MatryoshkaError(f"no score {name!r} here{did_you_mean(name, known)}")
        return of_name

    def values(self, name: str) -> list[float]:
        """Their values."""
        return [score.value for score in self.of(name)]


def score(
    measure: Measure,
    width: int,
    units: Iterable[object],
    numerator: Iterable[int | float] | np.ndarray,
    denominator: Iterable[int | float] | np.ndarray | None = None,
    null: int | float | None = None,
) -> Score:
    """A Score; without `denominator` the mean of the numerators."""
    names, above = tuple(map(str, units)), np.array(list(numerator), dtype=np.float64)
    below = np.ones_like(above) if denominator is None else np.array(list(denominator), dtype=np.float64)
    if not len(names) == len(set(names)) == len(above) == len(below):
        raise ValueError(f"{measure.name}: {len(names)} units, {len(set(names))} names, {len(above)} numbers")
    return Score(measure, width, names, above, below, None if null is None else float(null))


def finite(value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return value if math.isfinite(value) else None


def four_digits(values: Sequence[float | None] | np.ndarray) -> list[float | None]:
    """For JSON: each number to four digits, as short as it is written; None of what is not finite."""
    x = np.array(values, np.float64)  # None becomes NaN
    with np.errstate(divide="ignore", invalid="ignore"):
        places = 3 - np.floor(np.log10(np.abs(x)))
        whole = np.round(x * 10.0**places)  # over a power of ten, or times one, is the nearest there is
        rounded = np.where(places >= 0, whole / 10.0**places, whole * 10.0**-places)
    return [None if x != x else x for x in np.where(x == 0, 0.0, rounded).tolist()]
