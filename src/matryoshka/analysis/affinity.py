"""Which features of one coder are alike, by where they fire and by what they write.

    phi       (N n_ab − n_a n_b) / √(n_a (N − n_a) n_b (N − n_b)) of firing or not, over N tokens or N blocks of tokens
    cosine    of decoder rows

1. of each feature the NEIGHBOURS others that are most alike, all pairs being tried from exact sums; on tokens those
   that fire together TOGETHER times
2. of these, those that are alike beyond chance: where features are as they are and partners by chance, one of all n
   features would pass for each. Of firings P(n_ab or more) ≤ 1 / n if each firing of the rarer one were drawn by itself
   (binomial, above the exact hypergeometric tail); of cosines the 1 − 1 / n quantile of those with rows whose
   dimensions are shuffled
3. a graph: an edge where one of two is a neighbour of the other, its weight phi or the cosine

Everything is had three times: of all, and of two halves that have nothing in common (documents; dimensions of the
rows), so that what one says can be held against the other. Phi of co-activation as in Li et al. 2024 (The Geometry of
Concepts, arXiv:2410.19750).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import bdtrc
from torch import Tensor

from matryoshka.analysis.directions import shuffled_dimensions
from matryoshka.analysis.matching import FIRINGS, Living, activity
from matryoshka.analysis.observed import Observed
from matryoshka.defaults import DENSE
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.reader import spread

NEIGHBOURS = 15
LEAST = 2 * NEIGHBOURS
"""Features below which nothing is said of their neighbours."""
TOGETHER = 3
"""Units on which two features have to fire together: rare ones that coincide once have a large phi by chance."""
BLOCK = 256
"""Tokens of a document in one block."""
MOST_BLOCKS = 4096
"""Blocks that are looked at, spread over all: phi is sure to 1 / √4096 then."""
ROWS = 512
"""Features whose products are taken at once."""
GATHERED = 1 << 22
"""Firings that are counted at once."""
GATHERED_FEATURES = 64
CHANCE_ROWS = 512
"""Decoder rows whose cosines by chance are looked at."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Views(Generic[T]):
    """The same of all, and of two halves without anything in common."""

    whole: T
    first: T
    second: T

    def each(self, function: Callable[[T], U]) -> "Views[U]":
        """`function` of all three."""
        return Views(function(self.whole), function(self.first), function(self.second))


class Neighbours(NamedTuple):
    """The most alike others of each feature by their places, best first; −1 where there are fewer."""

    other: Int[np.ndarray, "n k"]
    value: Float[np.ndarray, "n k"]

    def above(self, chosen: Bool[np.ndarray, "n k"]) -> "Neighbours":
        """Only these of them."""
        return Neighbours(np.where(chosen, self.other, -1), np.where(chosen, self.value, 0))

    def graph(self) -> sp.csr_array:
        """[n, n], symmetric: an edge where one of two is a neighbour of the other."""
        n, has = len(self.other), self.other >= 0
        rows = np.repeat(np.arange(n), has.sum(1))
        one_way = sp.csr_array((self.value[has].astype(np.float64), (rows, self.other[has])), (n, n))
        return sp.csr_array(one_way.maximum(one_way.T))


class FiringTable(NamedTuple):
    """Which features fire in which units: tokens, or blocks of them."""

    fires: sp.csr_array
    """float32 [units, n], of ones."""
    n: int
    """Features."""
    documents: Int[np.ndarray, " units"]

    @property
    def in_second(self) -> Bool[np.ndarray, " units"]:
        """The units of every other document: the second half."""
        return np.unique(self.documents, return_inverse=True)[1] % 2 == 1

    def blocks(self) -> "FiringTable":
        """The same of blocks: each document is cut into equal parts of about BLOCK units, and a feature fires in a
        block where it does in any unit of it. MOST_BLOCKS of them, spread over all."""
        number, sizes, ranks = _ranks(self.documents)
        parts = np.maximum(1, np.rint(sizes / BLOCK).astype(np.int64))
        block = (np.cumsum(parts) - parts)[number] + ranks * parts[number] // sizes[number]
        total = int(parts.sum())
        chosen = spread(min(total, MOST_BLOCKS), total)
        units = np.arange(len(block))
        members = sp.csr_array((np.ones(len(block), np.float32), (block, units)), (total, len(block)))
        fires = sp.csr_array(members[chosen] @ self.fires)
        fires.data[:] = 1
        return FiringTable(fires, self.n, np.repeat(np.unique(self.documents), parts)[chosen])

    def rotated(self, within: Int[np.ndarray, " units"], seed: int) -> "FiringTable":
        """Every feature's firings moved on by a distance of its own in each group of units, round and round: how often
        and in what bursts it fires stays, and what it fires with is chance."""
        number, sizes, ranks = _ranks(within)
        order, starts = np.argsort(number, kind="stable"), np.cumsum(sizes) - sizes
        entries = self.fires.tocoo()
        unit, feature = entries.coords
        group = number[unit]
        _, pair = np.unique(feature.astype(np.int64) * len(sizes) + group, return_inverse=True)
        distance = np.random.default_rng(seed).random(pair.max(initial=-1) + 1)[pair] * sizes[group]
        moved = order[starts[group] + (ranks[unit] + distance.astype(np.int64)) % sizes[group]]
        return self._replace(fires=sp.csr_array((entries.data, (moved, feature)), (len(number), self.n)))

    def sample(self, most: int) -> "FiringTable":
        """Of at most so many features, spread evenly over them."""
        chosen = spread(min(self.n, most), self.n)
        return self._replace(fires=sp.csr_array(self.fires[:, chosen]), n=len(chosen))


def _ranks(groups: Int[np.ndarray, " units"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(each unit's group from 0, the groups' sizes, the unit's place within its group)."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, ranks = np.argsort(number, kind="stable"), np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return number, sizes, ranks


def sparse_firings(observed: Observed) -> tuple[Living, Int[np.ndarray, " dense"], FiringTable]:
    """(the living features that fire on at most DENSE of the tokens, the denser ones, where the former fire). Raises
    NotMeasurable for too few of them, and for a single document."""
    recorded = observed.recorded
    living = Living.of(recorded, recorded.kept)
    rare = living.firings <= DENSE * living.rows
    few = living._replace(features=living.features[rare], firings=living.firings[rare])
    if len(few.features) < LEAST:
        seldom = f"on {FIRINGS} of the tokens and on at most {DENSE:.0%} of them"
        raise NotMeasurable(f"{len(few.features)} features of {observed.name} fire {seldom}; neighbours take {LEAST}")
    documents = np.asarray(recorded.documents)[recorded.kept]
    if documents.min() == documents.max():
        raise NotMeasurable("the recorded text is one document; two halves take two")
    fires = activity(recorded, recorded.kept, few).latents
    fires.data[:] = 1
    return few, living.features[~rare], FiringTable(fires, len(few.features), documents)


# --- by where they fire

Counts = Iterator[tuple[int, Float[Tensor, "2 some n"]]]
"""(the first of some features; in either half the units where each fires together with every feature)."""


def gathered(firings: FiringTable) -> Counts:
    """Where few features fire in a unit: the rows of each feature's units, counted."""
    n, half = firings.n, firings.in_second
    columns = firings.fires.tocsc()
    width = max(1.0, columns.nnz / max(1, len(half)))
    block = np.arange(n) // GATHERED_FEATURES, (columns.indptr[1:] * width) // GATHERED
    starts = np.flatnonzero(np.any(np.diff(block, axis=1, prepend=-1) != 0, 0))
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        units = columns.indices[columns.indptr[start] : columns.indptr[end]]
        owner = np.repeat(np.arange(end - start), np.diff(columns.indptr[start : end + 1]))
        rows = firings.fires[units]
        keys = np.repeat((half[units] * (end - start) + owner) * n, np.diff(rows.indptr)) + rows.indices
        counts = np.bincount(keys, minlength=2 * (end - start) * n).reshape(2, end - start, n)
        yield int(start), torch.from_numpy(counts).float()


def multiplied(firings: FiringTable) -> Counts:
    """Where many features fire in a unit: a product of dense matrices."""
    halves = [torch.from_numpy(firings.fires[chosen].toarray()) for chosen in (~firings.in_second, firings.in_second)]
    for start in range(0, firings.n, ROWS):
        yield start, torch.stack([half[:, start : start + ROWS].T @ half for half in halves])


def by_firing(
    firings: FiringTable, together: Callable[[FiringTable], Counts], progress: Progress = silent
) -> Views[Neighbours]:
    """The features that fire together beyond chance, in all units and in those of either half of the documents;
    `progress` counts features."""
    n, half, fires = firings.n, firings.in_second, firings.fires
    views = [_PhiOf(part, n) for part in (fires, fires[~half], fires[half])]
    for start, both in together(firings):
        for view, counts in zip(views, (both.sum(0), *both), strict=True):
            view.keep(start, counts)
        progress(start + both.shape[1], n)
    return Views(*(view.beyond_chance() for view in views))


def phi_of_all(firings: FiringTable) -> Float[np.ndarray, "n n"]:
    """Phi of every two features, of not too many."""
    phi = _PhiOf(firings.fires, firings.n)
    return torch.cat([phi.of(start, both.sum(0)) for start, both in gathered(firings)]).numpy()


class _PhiOf:
    """Phi from counts, and the neighbours by it, as features come along."""

    def __init__(self, fires: sp.csr_array, n: int) -> None:
        self.units = len(fires.indptr) - 1
        self.firings = firings = torch.from_numpy(np.bincount(fires.indices, minlength=n)).float()
        variance = firings * (1 - firings / max(1, self.units))
        self.scale = torch.where(variance > 0, variance.rsqrt(), 0)
        k = min(NEIGHBOURS, n - 1)
        self.best = Neighbours(np.full((n, k), -1), np.zeros((n, k), np.float32))
        self.both = np.zeros((n, k), np.int64)

    def of(self, start: int, both: Float[Tensor, "some n"]) -> Float[Tensor, "some n"]:
        """Phi of the features from `start` on with each; `both`: units on which they fire together."""
        own = slice(start, start + len(both))
        phi = both - self.firings[own, None] * (self.firings / max(1, self.units))
        return phi.mul_(self.scale[own, None] * self.scale)

    def keep(self, start: int, both: Float[Tensor, "some n"]) -> None:
        """The neighbours of the features from `start` on."""
        own, phi = slice(start, start + len(both)), self.of(start, both)
        phi[both < TOGETHER] = -1.0
        some = torch.arange(len(both))
        phi[some, start + some] = -1.0
        best = phi.topk(self.best.other.shape[1])
        self.best.value[own], self.best.other[own] = best.values.numpy(), best.indices.numpy()
        self.both[own] = both.gather(1, best.indices).numpy()

    def beyond_chance(self) -> Neighbours:
        positive = self.best.value > 0
        firings = self.firings.numpy().astype(np.int64)
        own = np.repeat(firings, positive.sum(1))
        other = firings[self.best.other[positive]]
        chosen = positive.copy()
        often, rarely = np.maximum(own, other) / self.units, np.minimum(own, other)
        chosen[positive] = bdtrc(self.both[positive] - 1.0, rarely, often) <= 1 / len(firings)
        return self.best.above(chosen)


# --- by what they write


def by_direction(rows: Float[Tensor, "n d"], seed: int) -> Views[Neighbours]:
    """The features whose decoder rows point alike beyond chance, by all dimensions and by either half of them."""
    first, second = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    return Views(*(alike(part, seed) for part in (rows, rows[:, first], rows[:, second])))


def nearest_rows(rows: Float[Tensor, "n d"]) -> Neighbours:
    """The NEIGHBOURS others of each row by cosine, whatever it is."""
    unit = _unit(rows)
    parts: Iterable[tuple[Tensor, Tensor]] = (_largest(unit, start) for start in range(0, len(unit), ROWS))
    value, other = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return Neighbours(other, value)


def alike(rows: Float[Tensor, "n d"], seed: int) -> Neighbours:
    """Of the nearest rows those that point alike beyond chance."""
    nearest = nearest_rows(rows)
    some = torch.from_numpy(spread(min(len(rows), CHANCE_ROWS), len(rows)))
    chance = _unit(rows)[some] @ _unit(shuffled_dimensions(rows.cpu(), seed)).T
    passing = max(1, chance.numel() // len(rows))  # one of all features for each
    return nearest.above(nearest.value > max(0.0, float(chance.flatten().topk(passing).values[-1])))


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(rows.cpu().float(), dim=1)


def _largest(unit: Float[Tensor, "n d"], start: int) -> tuple[Tensor, Tensor]:
    cosine = unit[start : start + ROWS] @ unit.T
    some = torch.arange(len(cosine))
    cosine[some, start + some] = -2.0
    best = cosine.topk(min(NEIGHBOURS, len(unit) - 1))
    return best.values, best.indices
