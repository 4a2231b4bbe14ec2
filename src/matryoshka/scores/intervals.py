"""How sure a ratio of sums is, by resampling the units that it is a sum of (Efron 1979)."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
CONFIDENCE = 0.95
BLOCK_DRAWS = 4_000_000
"""Units drawn at once: 32 MB."""


class Interval(NamedTuple):
    """CONFIDENCE of the resampled values lie within."""

    low: float
    high: float


def resampled_ratios(
    numerator: Float[np.ndarray, " units"], denominator: Float[np.ndarray, " units"], seed: int = 0
) -> Float[np.ndarray, " resamples"]:
    """Σ numerator / Σ denominator of each resample."""
    return ratio(*resampled_sums(np.stack([numerator, denominator]), seed))


def resampled_sums(
    columns: Float[np.ndarray, "columns units"], seed: int = 0, at_once: int = BLOCK_DRAWS
) -> Float[np.ndarray, "columns resamples"]:
    """The columns summed over as many units drawn with replacement, the same ones for all columns, RESAMPLES times.

    `at_once`: units drawn in one block of memory. NaN of a single unit, which says nothing about its spread.
    """
    units = columns.shape[1]
    sums = np.full((len(columns), RESAMPLES), math.nan)
    if units < 2:
        return sums
    generator = np.random.default_rng(seed)
    block = max(1, at_once // units)
    for start in range(0, RESAMPLES, block):
        draws = generator.integers(0, units, (min(block, RESAMPLES - start), units))
        draws += units * np.arange(len(draws))[:, None]
        times = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)  # each unit was drawn in each
        sums[:, start : start + block] = columns @ times.T.astype(np.float64)
    return sums


def percentiles(values: Float[np.ndarray, " n"]) -> Interval:
    """What CONFIDENCE of the values lie within."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def ratio(above: Any, below: Any) -> Any:
    """above / below, without a warning where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.divide(above, below)
    return float(quotient) if np.ndim(quotient) == 0 else quotient
