"""Which latents of two coders fire alike on the same rows: exact sums over all rows, from the active entries alone.

    Pearson    cov(a, b) / (σ_a σ_b) of the latents over all rows, silent ones as zeros
    Jaccard    rows where both fire / rows where either does
    lift       P(a and b fire) / (P(a fires) · P(b fires))

1. of both coders the rows that count for both, and the latents that fire on at least FIRINGS of them
2. for each latent of the first the rows of the second where it fires, gathered a block at a time: how often each of the
   second's fires there, and the sums of products. No matrix of all pairs is ever held
3. of each latent of either coder the best partner by Pearson and by Jaccard; of equally good ones the first

What chance would give is the same with the rows of the second exchanged within their documents (`exchanged`): a match
that is left is one of documents or of how often latents fire, and not of tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Shaped

from matryoshka.progress import Progress, silent
from matryoshka.study.reader import spread
from matryoshka.study.recording import RecordedCoder

FIRINGS = 10
"""Rows on which a latent has to fire to be matched: two that fire once or twice coincide by chance."""
GATHERED = 8192
"""Active entries of the first coder of which the rows of the second are gathered at once: some megabytes."""
ENTRIES = 1 << 22
"""Entries counted and summed at once."""
TOLD_PROGRESS = 64
"""Latents between two reports of progress."""


class Living(NamedTuple):
    """The latents of one coder that fire on FIRINGS of the rows."""

    rows: int
    features: Int[np.ndarray, " living"]
    """Their numbers in the dictionary."""
    firings: Int[np.ndarray, " living"]
    """Rows on which each fires."""
    silent: int
    """Latents that fire on none."""
    rare: int
    """On too few."""

    @classmethod
    def of(cls, recorded: RecordedCoder, rows: Bool[np.ndarray, " places"]) -> "Living":
        """Of these places, all of which count for the coder."""
        chosen = np.repeat(rows, np.maximum(recorded.counts, 0))
        firings = np.zeros(recorded.d_sae, np.int64)
        for start in range(0, len(chosen), ENTRIES):
            some = slice(start, start + ENTRIES)
            firings += np.bincount(recorded.indices[some][chosen[some]], minlength=recorded.d_sae)
        features, silent = np.flatnonzero(firings >= FIRINGS), int((firings == 0).sum())
        return cls(int(rows.sum()), features, firings[features], silent, recorded.d_sae - len(features) - silent)


class Activity(NamedTuple):
    """What the living latents of one coder are on the rows that are compared."""

    living: Living
    latents: sp.csr_array
    """float32 [rows, living]."""
    sums: Float[np.ndarray, " living"]
    squares: Float[np.ndarray, " living"]
    """Σ and Σ of squares over the rows, in float64."""

    @property
    def inverse_deviations(self) -> Float[np.ndarray, " living"]:
        """1 / √Σ(a − mean)²; 0 of a latent that has the same value everywhere, which correlates with nothing."""
        variation = self.squares - self.sums**2 / max(1, self.living.rows)
        varies = variation > 1e-12 * self.squares
        return np.where(varies, 1 / np.sqrt(np.where(varies, variation, 1)), 0)

    def sample(self, most: int) -> "Activity":
        """At most so many of the latents, spread evenly over them."""
        n = len(self.living.features)
        return self.of(spread(min(n, most), n))

    def of(self, chosen: Int[np.ndarray, " n"]) -> "Activity":
        """These of the latents alone, by their places among the living, in this order."""
        features, firings = self.living.features[chosen], self.living.firings[chosen]
        living = self.living._replace(features=features, firings=firings)
        return Activity(living, self.latents[:, chosen], self.sums[chosen], self.squares[chosen])


class Best(NamedTuple):
    """The best partner of each living latent of one coder, by its place among the other's living ones; −1 where the
    other has none."""

    pearson: Float[np.ndarray, " living"]
    by_pearson: Int[np.ndarray, " living"]
    jaccard: Float[np.ndarray, " living"]
    by_jaccard: Int[np.ndarray, " living"]
    lift: Float[np.ndarray, " living"]
    """Of the partner by Jaccard."""


def activity(recorded: RecordedCoder, rows: Bool[np.ndarray, " places"], living: Living) -> Activity:
    """What a recording holds of a coder's living latents at these places."""
    latents, size = sparse(recorded, rows, living.features, recorded.values), len(living.features)
    totals = np.zeros((2, size))
    for start in range(0, latents.nnz, ENTRIES):
        block = slice(start, start + ENTRIES)
        some, indices = latents.data[block].astype(np.float64), latents.indices[block]
        totals += [np.bincount(indices, powers, size) for powers in (some, some**2)]
    return Activity(living, latents, *totals)


def sparse(
    recorded: RecordedCoder,
    rows: Bool[np.ndarray, " places"],
    features: Int[np.ndarray, " n"],
    values: Float[np.ndarray, " entries"],
) -> sp.csr_array:
    """float32 [rows, n]: `values`, one for each entry of the recording, of these features at these places."""
    lengths = np.maximum(recorded.counts, 0)
    chosen = np.repeat(rows, lengths)
    column = np.full(recorded.d_sae, -1, np.int32)
    column[features] = np.arange(len(features))
    columns, values, offsets = column[recorded.indices[chosen]], values[chosen], _offsets(lengths[rows])
    if not (present := columns >= 0).all():
        offsets = np.concatenate([[0], np.cumsum(present)]).astype(offsets.dtype)[offsets]
        columns, values = columns[present], values[present]
    return sp.csr_array((np.asarray(values), columns, offsets), (len(offsets) - 1, len(features)))


def _offsets(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_plus_1"]:
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return ends.astype(np.int32) if ends[-1] < 2**31 else ends


def exchanged(documents: Int[np.ndarray, " rows"], seed: int) -> Int[np.ndarray, " rows"]:
    """For each row another one of its document, each taken once: a random cycle through each document. Documents of a
    single row are taken together."""
    _, number, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    group = np.where(sizes[number] > 1, number, -1)
    cycle = np.lexsort((np.random.default_rng(seed).random(len(group)), group))
    first = np.flatnonzero(np.diff(group[cycle], prepend=-2))
    following = np.roll(cycle, -1)
    following[np.append(first[1:], len(cycle)) - 1] = cycle[first]
    order = np.empty(len(cycle), np.int64)
    order[cycle] = following
    return order


def match(
    first: Activity, second: Activity, order: Int[np.ndarray, " rows"] | None = None, progress: Progress = silent
) -> tuple[Best, Best]:
    """The best partners of the first coder's living latents among the second's, and of the second's among the first's.

    `order`: beside row r of the first stands row order[r] of the second (default: the same). `progress` counts latents
    of the first. Memory: the first's entries once more, and nothing that grows with the number of pairs.
    """
    of_first, of_second = _none(len(first.living.features)), _none(len(second.living.features))
    if not len(of_first.pearson) or not len(of_second.pearson):
        return of_first, of_second
    rows, firings, other_firings = first.living.rows, first.living.firings, second.living.firings
    scale, other_scale = first.inverse_deviations, second.inverse_deviations
    for a, both, products in together(first.latents.tocsc(), second.latents, len(other_firings), order):
        pearson = (products - first.sums[a] / rows * second.sums) * (scale[a] * other_scale)
        jaccard = both / (firings[a] + other_firings - both)
        lift = both * (rows / firings[a]) / other_firings
        _keep_best(of_first, of_second, a, pearson.clip(-1, 1), jaccard, lift)
        if a % TOLD_PROGRESS == 0 or a + 1 == len(firings):
            progress(a + 1, len(firings))
    return of_first, of_second


def together(
    first: sp.csc_array, second: sp.csr_array, size: int, order: Int[np.ndarray, " rows"] | None
) -> Iterator[tuple[int, Int[np.ndarray, " living"], Float[np.ndarray, " living"]]]:
    """(a, on how many rows each latent of the second fires together with latent a of the first, Σ of their products),
    for each a in order; every one fires somewhere. `size`: latents of the second."""
    both, products = np.zeros(size, np.int64), np.zeros(size)
    for a, entries, part in beside(first, second, order):
        weights = np.repeat(first.data[entries].astype(np.float64), part.lengths) * part.values
        both += np.bincount(part.indices, minlength=size)
        products += np.bincount(part.indices, weights, minlength=size)
        if entries.stop == first.indptr[a + 1]:  # otherwise the next rows are its own too
            yield a, both, products
            both, products = np.zeros(size, np.int64), np.zeros(size)


def counted(first: sp.csc_array, second: sp.csr_array, size: int) -> Iterator[tuple[int, Int[np.ndarray, " living"]]]:
    """(a, on how many rows each latent of the second fires together with latent a of the first) as `together`, without
    their products."""
    both = np.zeros(size, np.int64)
    for a, entries, part in beside(first, second):
        both += np.bincount(part.indices, minlength=size)
        if entries.stop == first.indptr[a + 1]:
            yield a, both
            both = np.zeros(size, np.int64)


class Gathered(NamedTuple):
    """The entries of some rows, one row after another."""

    lengths: Int[np.ndarray, " rows"]
    indices: Int[np.ndarray, " entries"]
    values: Shaped[np.ndarray, " entries"]


def beside(
    first: sp.csc_array, second: sp.csr_array, order: Int[np.ndarray, " rows"] | None = None
) -> Iterator[tuple[int, slice, Gathered]]:
    """(a, some of the first's entries, all of latent a; the rows of the second that stand beside them) until all
    entries of the first are through, in order: of rare latents all at once, of others a part at a time."""
    for start in range(0, first.nnz, GATHERED):
        end = min(start + GATHERED, first.nnz)
        rows = first.indices[start:end]
        part = second[rows if order is None else order[rows]]
        indices, lengths = part.indices.astype(np.intp), np.diff(part.indptr)
        a = int(np.searchsorted(first.indptr, start, side="right")) - 1
        while a < len(first.indptr) - 1 and first.indptr[a] < end:
            low, high = (int(edge) for edge in first.indptr[a : a + 2].clip(start, end))
            own = slice(*part.indptr[[low - start, high - start]])
            yield a, slice(low, high), Gathered(lengths[low - start : high - start], indices[own], part.data[own])
            a += 1


def _none(n: int) -> Best:
    """No partner yet; filled in place."""
    return Best(np.full(n, -2.0), np.full(n, -1), np.full(n, -1.0), np.full(n, -1), np.zeros(n))


def _keep_best(
    of_first: Best,
    of_second: Best,
    a: int,
    pearson: Float[np.ndarray, " living"],
    jaccard: Float[np.ndarray, " living"],
    lift: Float[np.ndarray, " living"],
) -> None:
    """Latent `a` of the first against all of the second: its own best, and where it is the best so far of theirs."""
    of_first.by_pearson[a], of_first.by_jaccard[a] = by_pearson, by_jaccard = pearson.argmax(), jaccard.argmax()
    of_first.pearson[a], of_first.jaccard[a] = pearson[by_pearson], jaccard[by_jaccard]
    of_first.lift[a] = lift[by_jaccard]
    better = np.flatnonzero(pearson > of_second.pearson)
    of_second.pearson[better], of_second.by_pearson[better] = pearson[better], a
    better = np.flatnonzero(jaccard > of_second.jaccard)
    of_second.jaccard[better], of_second.by_jaccard[better] = jaccard[better], a
    of_second.lift[better] = lift[better]
