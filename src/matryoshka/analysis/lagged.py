"""What fires before what, and what with what: partners of each latent a few tokens later, and at the same token.

    lift      P(b fires at t + lag | a fires at t) / P(b fires at t + lag), over all t whose passage has a t + lag
    lower     the same of the Wilson lower bound (95 %) of P(b at t + lag | a at t)

1. for each latent a the rows `lag` after its firings, gathered: how often each b ≠ a fires there, exactly. The
   CANDIDATES of most evidence G = n ln(n / expected) − n + expected are tried, of those with n ≥ TOGETHER, a lift of
   LIFT, and exp(−G) ≤ p, Chernoff's bound of so many by chance
2. beyond chance: so often by a Poisson variable whose mean is what tokens exchanged within their documents give, where
   what is of one topic fires together as well; p = LEVEL / (latents · lags), so that of all features that are left to
   chance no more than LEVEL have a successor
3. ordered: b fires after a more often than before it, by a sign test with p ≤ LEVEL / (CANDIDATES · lags). Two latents
   of one topic, or of one token, follow each other either way

What stands both tests is a *successor* of a at this lag. P and lift are Granger's question without his regression: who
fires before whom, not who makes whom fire.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.special import bdtrc

from matryoshka.analysis.correspondence import LIFT, PROCESSED
from matryoshka.analysis.matching import counted
from matryoshka.analysis.timing import Raster, blocks, many_by_chance
from matryoshka.scores.coverage import wilson_lower

LAGS = (1, 2, 4)
LEVEL = 0.05
TOGETHER = 5
"""Pairs of rows that say anything of two latents."""
CANDIDATES = 8
KEPT = 2
"""Successors of each latent at each lag."""


class Successors(NamedTuple):
    """One a row; latents by their place among the living. Those of one latent at one lag stand together, the strongest
    first."""

    latent: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    lag: Int[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    """P(other at t + lag | latent at t)."""
    lift: Float[np.ndarray, " n"]
    lower: Float[np.ndarray, " n"]
    backward: Float[np.ndarray, " n"]
    """Lift of the other way round: P(latent at t + lag | other at t) / P(latent at t + lag)."""

    def lifts(self, latents: Int[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
        """Of each of these latents the lift of its successor of the largest lower bound; 1 without one."""
        strongest = np.ones(1 + max(latents.max(initial=-1), self.latent.max(initial=-1)))
        order = np.argsort(self.lower, kind="stable")
        strongest[self.latent[order]] = self.lift[order]  # of several the last is kept
        return strongest[latents]


def successors(raster: Raster, after: sp.csr_array, latents: Int[np.ndarray, " some"]) -> Successors:
    """Of these latents, at all LAGS that a window holds. `after`: the firings that may follow, on the raster's rows:
    its own, or those of exchanged tokens."""
    lags = [lag for lag in LAGS if lag < raster.context]
    beyond, ordered = LEVEL / (raster.size * len(lags)), LEVEL / (CANDIDATES * len(lags))
    found = [_at_lag(Lagged(raster, after, lag), latents, beyond, ordered) for lag in lags]
    columns = np.concatenate(found, 1)
    return Successors(*(column.astype(np.int64) for column in columns[:3]), *columns[3:])


def _at_lag(
    lagged: "Lagged", latents: Int[np.ndarray, " some"], beyond: float, ordered: float
) -> Float[np.ndarray, "columns n"]:
    """Columns of Successors. `beyond`, `ordered`: the largest p of each test."""
    found = [np.empty((len(Successors._fields), 0))]
    for latent, others, count in lagged.candidates(latents, beyond):
        stands = many_by_chance(count, lagged.by_chance(latent, others)) <= beyond
        others, count = others[stands], count[stands]
        backward = lagged.backward(latent, others)
        stands = bdtrc(count - 1, count + backward, 0.5) <= ordered
        found.append(lagged.described(latent, others[stands], count[stands], backward[stands]))
    return np.concatenate(found, 1)


class Lagged:
    """All pairs of rows, the second `lag` tokens after the first in its passage, and what fires on either."""

    def __init__(self, raster: Raster, after: sp.csr_array, lag: int) -> None:
        later = raster.later(lag)
        first = np.flatnonzero(later >= 0)
        self.lag, self.pairs = lag, len(first)
        self.here, self.there = raster.firing[first].tocsc(), after[later[first]]
        """[pairs, living]."""
        self._there = self.there.tocsc()
        self.n_here, self.n_there = np.diff(self.here.indptr), np.diff(self._there.indptr)
        documents = raster.documents[first]
        self._sizes = np.maximum(1, np.bincount(documents))
        self._here_in, self._there_in = (_by_document(on, documents) for on in (self.here, self._there))
        self._mark = np.zeros(self.pairs, bool)

    def candidates(
        self, latents: Int[np.ndarray, " some"], level: float
    ) -> Iterator[tuple[int, Int[np.ndarray, " others"], Int[np.ndarray, " others"]]]:
        """(latent, those that may follow it, on how many pairs they do) for each of these that has any."""
        size = len(self.n_here)
        here = self.here if len(latents) == size else self.here[:, latents]
        for i, count in counted(here, self.there, size):
            latent = int(latents[i])
            count[latent] = 0
            others = self._most_evident(latent, count, -np.log(level))
            if len(others):
                yield latent, others, count[others]

    def _most_evident(self, latent: int, count: Int[np.ndarray, " living"], least: float) -> Int[np.ndarray, " others"]:
        expected = self.n_there * (self.n_here[latent] / max(1, self.pairs))
        some = np.flatnonzero((count >= TOGETHER) & (count >= LIFT * expected))
        of, by_chance = count[some], expected[some]
        evidence = of * np.log(of / by_chance) - of + by_chance
        evident = evidence >= least
        some, evidence = some[evident], evidence[evident]
        return some[np.argsort(-evidence, kind="stable")[:CANDIDATES]]

    def by_chance(self, latent: int, others: Int[np.ndarray, " others"]) -> Float[np.ndarray, " others"]:
        """On how many pairs the others follow where tokens are exchanged within their documents, on average."""
        where, here = _row(self._here_in, latent)
        share = np.zeros(len(self._sizes))
        share[where] = here / self._sizes[where]
        there = (_row(self._there_in, int(other)) for other in others)
        return np.array([float(share[of_other] @ firings) for of_other, firings in there])

    def backward(self, latent: int, others: Int[np.ndarray, " others"]) -> Int[np.ndarray, " others"]:
        """On how many pairs the latent follows the others."""
        own = _rows(self._there, latent)
        self._mark[own] = True
        found = np.array([self._mark[_rows(self.here, int(other))].sum() for other in others], np.int64)
        self._mark[own] = False
        return found

    def described(
        self,
        latent: int,
        others: Int[np.ndarray, " others"],
        count: Int[np.ndarray, " others"],
        backward: Int[np.ndarray, " others"],
    ) -> Float[np.ndarray, "columns kept"]:
        """The KEPT strongest as columns of Successors."""
        n, base = int(self.n_here[latent]), self.n_there[others] / self.pairs
        back = backward * self.pairs / (np.maximum(1, self.n_here[others]) * max(1, self.n_there[latent]))
        share, lower = count / n, wilson_lower(count / n, n) / base
        columns = np.full(len(others), latent), others, np.full(len(others), self.lag), share, share / base, lower, back
        return np.stack(columns)[:, np.argsort(-lower, kind="stable")[:KEPT]]


def _by_document(firing: sp.csc_array, documents: Int[np.ndarray, " rows"]) -> sp.csr_array:
    """[latents, documents]: on how many rows of each document a latent fires."""
    where, counts, sizes = [], [], []
    for some, rows, latent in blocks(firing):
        document = documents[rows]
        first = np.flatnonzero((np.diff(document, prepend=-1) != 0) | (np.diff(latent, prepend=-1) != 0))
        where.append(document[first])
        counts.append(np.diff(first, append=len(rows)).astype(np.int32))
        sizes.append(np.bincount(latent[first], minlength=some.stop - some.start))
    ends = np.concatenate([[0], *sizes]).cumsum()
    shape = len(firing.indptr) - 1, int(documents.max(initial=-1)) + 1
    return sp.csr_array((np.concatenate(counts), np.concatenate(where), ends), shape)


def _row(matrix: sp.csr_array, i: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Columns and values."""
    own = slice(*matrix.indptr[i : i + 2])
    return matrix.indices[own], matrix.data[own]


def _rows(matrix: sp.csc_array, i: int) -> Int[np.ndarray, " n"]:
    """Where the i-th column has entries."""
    return matrix.indices[slice(*matrix.indptr[i : i + 2])]


class Companions(NamedTuple):
    """What fires with each of some latents at the same token; latents by their place among the living."""

    latent: Int[np.ndarray, " some"]
    partners: Int[np.ndarray, " some"]
    """How many latents fire on PROCESSED.jaccard of the tokens where either fires, and LIFT times as often as by
    chance."""
    other: Int[np.ndarray, " some"]
    """The one of the largest Jaccard index."""
    jaccard: Float[np.ndarray, " some"]
    lift: Float[np.ndarray, " some"]


def companions(raster: Raster, beside_it: sp.csr_array, latents: Int[np.ndarray, " some"]) -> Companions:
    """`beside_it`: the firings at the same tokens: the raster's own, or those of exchanged tokens."""
    size, n = raster.size, raster.living.firings
    found = []
    for i, count in counted(raster.firing[:, latents].tocsc(), beside_it, size):
        own = n[latents[i]]
        count[latents[i]] = 0
        jaccard, lift = count / (own + n - count), count * (raster.rows / own) / n
        best = int(jaccard.argmax())
        partners = int(((jaccard >= PROCESSED.jaccard) & (lift >= LIFT)).sum())
        found.append((partners, best, jaccard[best], lift[best]))
    partners, other, jaccard, lift = (np.array(column) for column in zip(*found, strict=True))
    return Companions(latents, partners, other, jaccard, lift)
