"""When latents fire: where in a passage, in bursts or singly, and how long a firing is followed by others.

A *passage* is the part of one document that lies in one window: nothing here reaches across its borders. Of a latent
that fires n times:

    position          Σ P(bin | fires) log₂(P(bin | fires) / P(bin)) in bits a firing, of BINS bins of equally many rows
                      by how far they are into their passage
    burstiness        (σ − μ) / (σ + μ) of the gaps between its firings: −1 of a clock, 0 by chance, 1 of bursts (Goh &
                      Barabási 2008, arXiv:physics/0610233)
    run               the mean number of tokens on end on which it fires
    autocorrelation   r = (P(fires at t + lag | fires at t) − P(fires)) / (1 − P(fires)) at each of LAGS

By chance: tokens exchanged within their documents for the first two, NULLS times over, for all latents at once. Bits
are χ² of BINS − 1 degrees of freedom times a constant, so that observed / mean by chance is F-distributed; burstiness
is held against its mean and deviation by chance with Student's t. For the autocorrelation tokens are exchanged over the
whole text, so that what is of a topic counts: joins (pairs of firings at a lag) then have an exact mean and variance
(`joins_by_chance`).
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Real
from scipy.special import fdtrc, gammainc, stdtr

from matryoshka.analysis.matching import FIRINGS, Living, activity, exchanged
from matryoshka.progress import Progress
from matryoshka.scores.intervals import ratio
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.recording import RecordedCoder

BINS = 16
GAPS = 10
"""Gaps that a burstiness needs."""
NULLS = 8
"""Exchanges that make up the chance of position and burstiness."""
LAGS = (1, 2, 4, 8, 16, 32, 64)
ROWS = 1 << 16
"""Laid beside those of a lag later at once."""
ENTRIES = 1 << 18
"""Gone through at once: what is made of them stays in the cache."""


class Raster:
    """On which rows the living latents of one coder fire, and where in the text these rows are."""

    def __init__(self, recorded: RecordedCoder, name: str) -> None:
        """Raises NotMeasurable where no latent of the coder `name` fires on FIRINGS rows."""
        self.living = Living.of(recorded, recorded.kept)
        if not len(self.living.features):
            raise NotMeasurable(f"no latent of {name} fires on {FIRINGS} of the {recorded.rows:,} tokens that count")
        latents = activity(recorded, recorded.kept, self.living).latents
        self.firing = sp.csr_array((np.ones(latents.nnz, np.int8), latents.indices, latents.indptr), latents.shape)
        """[rows, living], ones."""
        self.firing.sort_indices()
        self.context = recorded.context
        self.places = np.flatnonzero(recorded.kept).astype(np.int32)
        """Of each row, ascending."""
        place = np.arange(len(recorded.kept))
        begins = np.diff(recorded.documents, prepend=-1) != 0
        begins |= place % self.context == 0
        self.documents = np.cumsum(np.diff(recorded.documents[self.places], prepend=-1) != 0, dtype=np.int32) - 1
        """Of each row, counted from 0."""
        self.passages = (np.cumsum(begins, dtype=np.int32) - 1)[self.places]
        self.into = self.places - np.flatnonzero(begins)[self.passages]
        """How many tokens of each row's passage lie before it."""

    @cached_property
    def spaced(self) -> Int[np.ndarray, " rows"]:
        """Places, a window further apart from passage to passage: only within one are two less than a window apart."""
        return self.places + self.passages.astype(np.int64) * self.context

    @property
    def rows(self) -> int:
        return len(self.places)

    @property
    def size(self) -> int:
        """Living latents."""
        return len(self.living.features)

    @cached_property
    def bins(self) -> Int[np.ndarray, " rows"]:
        """Of each row by how far it is into its passage; each bin holds as many rows as whole numbers allow."""
        edges = np.unique(np.quantile(self.into, np.arange(1, BINS) / BINS, method="higher"))
        found = np.searchsorted(edges, self.into, side="right")
        return np.unique(found, return_inverse=True)[1]

    @cached_property
    def shares(self) -> Float[np.ndarray, " bins"]:
        """Of the rows, in each bin."""
        return np.bincount(self.bins) / self.rows

    @cached_property
    def lags(self) -> tuple[int, ...]:
        """Those of LAGS that a window holds."""
        return tuple(lag for lag in LAGS if lag < self.context)

    def later(self, lag: int) -> Int[np.ndarray, " rows"]:
        """Of each row that of its passage `lag` tokens later; −1 where that is none or does not count."""
        number = np.full(int(self.places[-1]) + lag + 1, -1)
        number[self.places] = np.arange(self.rows)
        row = number[self.places + lag]
        return np.where((row >= 0) & (self.passages[row] == self.passages), row, -1)

    def exchanged(self, seed: int) -> sp.csr_array:
        """The firings with tokens exchanged within their documents."""
        return self.firing[exchanged(self.documents, seed)]

    def mixed(self, seed: int) -> sp.csr_array:
        """The firings with tokens exchanged over the whole text."""
        return self.firing[exchanged(np.zeros(self.rows, np.int64), seed)]


class Timing(NamedTuple):
    """Of each latent; NaN where it has too few gaps."""

    bits: Float[np.ndarray, " living"]
    burstiness: Float[np.ndarray, " living"]
    run: Float[np.ndarray, " living"]


def timing(raster: Raster, firing: sp.csr_array) -> Timing:
    """Of these firings on the raster's rows."""
    trains, bins = firing.tocsc(), len(raster.shares)
    tables, sums, firings = np.zeros((raster.size, bins)), np.zeros((4, raster.size)), np.diff(trains.indptr)
    for some, rows, feature in blocks(trains):
        n = some.stop - some.start
        tables[some] = np.bincount(feature * bins + raster.bins[rows], minlength=n * bins).reshape(n, bins)
        gap = np.diff(raster.spaced[rows])
        gap[np.cumsum(firings[some])[:-1] - 1] = 0  # from the last firing of a latent to the next one's first
        inside = np.flatnonzero((gap > 0) & (gap < raster.context))
        gap, of = gap[inside].astype(np.float64), feature[1:][inside]
        sums[:, some] = [np.bincount(of, weights, n) for weights in (None, gap, gap**2, gap == 1)]
    shares = tables / firings[:, None]
    bits = np.where(shares > 0, shares * np.log2(np.where(shares > 0, shares, 1) / raster.shares), 0).sum(1)
    gaps, total, squares, on_end = sums
    mean = ratio(total, gaps)
    deviation = np.sqrt(np.maximum(0, ratio(squares, gaps) - mean**2))
    burstiness = np.where(gaps >= GAPS, (deviation - mean) / (deviation + mean), np.nan)
    return Timing(bits, burstiness, firings / (firings - on_end))


def centres(raster: Raster) -> tuple[Float[np.ndarray, " living"], Float[np.ndarray, " living"]]:
    """Mean and standard deviation of the places at which each latent fires: 0 the first of a passage, 1 the last of a
    window that is one passage."""
    trains = raster.firing.tocsc()
    place, sums = raster.into / (raster.context - 1), np.zeros((2, raster.size))
    for some, rows, feature in blocks(trains):
        sums[:, some] = [np.bincount(feature, place[rows] ** power, some.stop - some.start) for power in (1, 2)]
    mean, squares = sums / np.diff(trains.indptr)
    return mean, np.sqrt(np.maximum(0, squares - mean**2))


def blocks(
    trains: sp.csc_array,
) -> Iterator[tuple[slice, Int[np.ndarray, " entries"], Int[np.ndarray, " entries"]]]:
    """(some latents, the rows where they fire, whose firing each is, counted from the first of them): ENTRIES at a
    time, or those of one latent."""
    start, size = 0, len(trains.indptr) - 1
    while start < size:
        most = np.searchsorted(trains.indptr, trains.indptr[start] + ENTRIES, side="right") - 1
        end = max(start + 1, int(most))
        rows = trains.indices[trains.indptr[start] : trains.indptr[end]]
        yield slice(start, end), rows, np.repeat(np.arange(end - start), np.diff(trains.indptr[start : end + 1]))
        start = end


class Chance(NamedTuple):
    """What exchanged tokens give of each latent."""

    bits: Float[np.ndarray, " living"]
    burstiness: Float[np.ndarray, " living"]
    """Their means."""
    deviation: Float[np.ndarray, " living"]
    """Of burstiness, as a further exchange strays from the mean of NULLS."""

    def position_p(self, observed: Timing, bins: int) -> Float[np.ndarray, " living"]:
        """How likely so many bits are by chance."""
        return fdtrc(max(1, bins - 1), NULLS * max(1, bins - 1), ratio(observed.bits, self.bits))

    def z(self, observed: Timing) -> Float[np.ndarray, " living"]:
        """How far above chance the burstiness is, in deviations; NaN where there is none."""
        return ratio(observed.burstiness - self.burstiness, self.deviation)

    def burst_p(self, observed: Timing) -> Float[np.ndarray, " living"]:
        """How likely so much burstiness is by chance; NaN where there is none."""
        return stdtr(NULLS - 1, -self.z(observed))


def chance(raster: Raster, progress: Progress) -> Chance:
    """Of NULLS exchanges; `progress` counts them."""
    bits, burstiness = np.zeros((2, NULLS, raster.size))
    for i in range(NULLS):
        found = timing(raster, raster.exchanged(i + 1))
        bits[i], burstiness[i] = found.bits, found.burstiness
        progress(i + 1, NULLS)
    deviation = burstiness.std(0, ddof=1) * np.sqrt(1 + 1 / NULLS)
    return Chance(bits.mean(0), burstiness.mean(0), deviation)


class Autocorrelation(NamedTuple):
    """At each of the lags that a window holds."""

    r: Float[np.ndarray, "living lags"]
    p: Float[np.ndarray, "living lags"]
    """How likely so many joins are by chance."""


def autocorrelation(raster: Raster, firing: sp.csr_array) -> Autocorrelation:
    """Of these firings on the raster's rows."""
    n = raster.living.firings.astype(np.float64)
    found = [_at_lag(raster.rows, firing, n, raster.later(lag)) for lag in raster.lags]
    return Autocorrelation(*(np.stack(columns, 1) for columns in zip(*found, strict=True)))


def _at_lag(
    rows: int, firing: sp.csr_array, n: Float[np.ndarray, " living"], later: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " living"], Float[np.ndarray, " living"]]:
    leading = np.flatnonzero(later >= 0)
    joins, leads = np.zeros((2, len(n)))
    for start in range(0, len(leading), ROWS):
        some = leading[start : start + ROWS]
        here = firing[some]
        joins += np.bincount(here.multiply(firing[later[some]]).indices, minlength=len(n))
        leads += np.bincount(here.indices, minlength=len(n))
    density = n / rows
    r = np.where((leads > 0) & (density < 1), ratio(ratio(joins, leads) - density, 1 - density), 0)
    mean, variance = joins_by_chance(n, rows, len(leading), int((later[later[leading]] >= 0).sum()))
    return r, many_by_chance(joins, mean, variance)


def joins_by_chance(
    n: Float[np.ndarray, " living"], rows: int, pairs: int, chains: int
) -> tuple[Float[np.ndarray, " living"], Float[np.ndarray, " living"]]:
    """Mean and variance of how many of `pairs` pairs of rows have a firing on both, where n firings are thrown on
    `rows` rows; `chains`: pairs of pairs that share a row (the join count under randomisation: Cliff & Ord 1981)."""
    two, three, four = (_falling(n, k) / math.perm(rows, k) for k in (2, 3, 4))
    mean = pairs * two
    square = mean + 2 * chains * three + (pairs * (pairs - 1.0) - 2 * chains) * four
    return mean, np.maximum(0, square - mean**2)


def _falling(n: Float[np.ndarray, " living"], k: int) -> Float[np.ndarray, " living"]:
    """n (n − 1) …, k factors."""
    return np.prod([np.maximum(n - i, 0) for i in range(k)], 0)


def many_by_chance(
    count: Real[np.ndarray, " n"], mean: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " n"]:
    """P(count or more) of a Poisson variable, stretched so that it has this variance (default: its mean)."""
    stretch = np.ones_like(mean) if variance is None else np.where(variance > 0, ratio(variance, mean), 1)
    return np.where(count > 0, gammainc(np.maximum(count, 1) / stretch, mean / stretch), 1)


def reach(found: Autocorrelation, lags: Sequence[int], level: float) -> Int[np.ndarray, " living"]:
    """The largest lag at which a latent's autocorrelation is beyond chance and still half of its largest that is; 0
    where none is. Of all that are left to chance no more than `level` have one (Bonferroni over the lags)."""
    beyond = found.p <= level / len(lags)
    r = np.where(beyond, found.r, 0)
    far = beyond & (r >= r.max(1, keepdims=True) / 2)
    return np.where(far, np.array(lags), 0).max(1)
