"""Communities of a graph of features, and how far they are more than chance.

    communities   the partition of largest modularity that Leiden's method finds (Traag et al. 2019, arXiv:1810.08473)
    modularity    Q = Σ_i (w_i − k_i K_c(i) / 2m) / Σ_i k_i: w_i weight of i's edges within its community c(i), k_i of
                  all its edges, K_c of all of a community's, 2m of all (Newman 2004)
    agreement     adjusted mutual information, (I(u, v) − E) / ((H(u) + H(v)) / 2 − E): 1 of two equal partitions, 0 on
                  average of two with their labels exchanged, for which E is expected (Vinh et al. 2010)

All are sums over features, so that these can be resampled; how large communities are, and E, stay as they are then. The
modularity of a partition in the graph that it was found in is large for any sparse graph: it is taken in another one
(`affinity.Views`), where it is 0 for partitions that say nothing.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from matryoshka.analysis.affinity import Neighbours
from matryoshka.analysis.extras import extra

SEED = 0
PERMUTATIONS = 20
CENTRAL = 12
MOST_EXPECTED = 0.9
MEMBERS = 10
"""Features of a community from which on it is one to be told from others by their neighbours."""

Labels = Int[np.ndarray, " n"]
"""Each feature's community by its number, the largest first; −1 of none."""


class FeatureSums(NamedTuple):
    """A score as sums over features."""

    chosen: Bool[np.ndarray, " n"]
    """The features that it is of."""
    numerator: Float[np.ndarray, " chosen"]
    denominator: Float[np.ndarray, " chosen"]
    null: float

    @property
    def measured(self) -> bool:
        """Whether there is anything to divide by."""
        return bool(self.denominator.sum() > 0)


def communities(graph: sp.csr_array) -> Labels:
    """The communities of a symmetric graph; features without an edge are in none. Raises NotMeasurable without the
    library."""
    leiden = extra("graspologic_native", "graspologic-native", "clusters", "communities").leiden_csr
    labels, has = np.full(len(graph.indptr) - 1, -1), np.flatnonzero(np.diff(graph.indptr))
    if not len(has):
        return labels
    inner = sp.csr_array(graph[has][:, has])
    parts = inner.indptr.astype(np.int64), inner.indices.astype(np.int32), inner.data.astype(np.float64)
    _, found = leiden(*parts, len(has), seed=SEED)
    labels[has] = [found[i] for i in range(len(has))]
    return _largest_first(labels)


def _largest_first(labels: Labels) -> Labels:
    """The same, numbered by size; of equally large ones the first that a feature is in."""
    chosen = labels >= 0
    _, first, number, sizes = np.unique(labels[chosen], return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    ordered = labels.copy()
    ordered[chosen] = rank[number]
    return ordered


def described(graph: sp.csr_array, labels: Labels, features: Int[np.ndarray, " n"]) -> list[dict]:
    """Of each community its number, size, and the features with most weight of edges within it."""
    within = _within(graph, labels)
    order = np.lexsort((-within, labels))
    order = order[labels[order] >= 0]
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    return [
        {"number": number, "size": len(those), "central": features[those[:CENTRAL]].tolist()}
        for number, those in enumerate(members)
    ]


def modularity(graph: sp.csr_array, labels: Labels) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(numerators, denominators) of a partition's modularity in a graph; a feature of no community is one by itself."""
    alone = np.where(labels >= 0, labels, labels.max(initial=-1) + 1 + np.arange(len(labels)))
    weights = graph.sum(1)
    of_community = np.bincount(alone, weights)
    within = _within(graph, alone)
    return within - weights * of_community[alone] / max(weights.sum(), 1e-300), weights


def _within(graph: sp.csr_array, labels: Labels) -> Float[np.ndarray, " n"]:
    """The weight of each feature's edges within its community."""
    edges = graph.tocoo()
    one, other = edges.coords
    within = np.bincount(one, edges.data * (labels[one] == labels[other]), len(labels))
    return within.astype(np.float64)  # without edges it counts in integers


def agreement(first: Labels, second: Labels) -> FeatureSums:
    """Adjusted mutual information of two partitions, over the features that have a community in both; null: that of
    the second's labels exchanged among these features. Of communities so small that chance agrees nearly as well as
    anything can (E > MOST_EXPECTED of the entropies) nothing is said."""
    chosen = (first >= 0) & (second >= 0)
    a, b = (np.unique(labels[chosen], return_inverse=True)[1] for labels in (first, second))
    n, entropies = int(chosen.sum()), (_surprise(a) + _surprise(b)) / 2
    expected = expected_mutual_information(contingency_matrix(a, b, sparse=True).astype(np.int64), n) if n else 0.0
    if expected >= MOST_EXPECTED * entropies.sum() / max(1, n):
        return FeatureSums(chosen, np.zeros(n), np.zeros(n), 0.0)
    generator = np.random.default_rng(SEED)
    by_chance = np.mean([_pointwise(a, generator.permutation(b)).mean() for _ in range(PERMUTATIONS)]) - expected
    room = entropies - expected
    return FeatureSums(chosen, _pointwise(a, b) - expected, room, float(by_chance / room.mean()))


def _surprise(labels: Labels) -> Float[np.ndarray, " n"]:
    """−ln of the share of all that each one's community is."""
    return -np.log(np.bincount(labels)[labels] / len(labels))


def _pointwise(a: Labels, b: Labels) -> Float[np.ndarray, " n"]:
    """ln(n n_ab / (n_a n_b)) of each feature's two communities: their mean is the mutual information."""
    _, both, together = np.unique(a * (b.max() + 1) + b, return_inverse=True, return_counts=True)
    return np.log(together[both] / len(a)) + _surprise(a) + _surprise(b)


def told(neighbours: Neighbours, labels: Labels) -> FeatureSums:
    """Balanced accuracy of telling a feature's community by the most frequent one among its neighbours, itself left
    out: the mean over communities of MEMBERS or more of the share of their features that are told. Null: the same with
    the labels exchanged."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    of_many = np.where((labels >= 0) & (sizes[labels] >= MEMBERS), labels, -1)
    chosen = of_many >= 0
    own = of_many[chosen]
    weights = 1 / np.bincount(own, minlength=1)[own]
    generator, shuffled, nulls = np.random.default_rng(SEED), of_many.copy(), []
    for _ in range(PERMUTATIONS):
        shuffled[chosen] = generator.permutation(own)
        right = _most_frequent(neighbours, shuffled)[chosen] == shuffled[chosen]
        nulls.append((right / np.bincount(own)[shuffled[chosen]]).sum() / weights.sum() if len(own) else 0.0)
    right = _most_frequent(neighbours, of_many)[chosen] == own
    return FeatureSums(chosen, right * weights, weights, float(np.mean(nulls)))


def _most_frequent(neighbours: Neighbours, labels: Labels) -> Labels:
    """The most frequent community of each feature's neighbours; of equally frequent ones the larger; −2 of none."""
    n, k = neighbours.other.shape
    votes = np.where(neighbours.other >= 0, labels[neighbours.other], -1)
    chosen = votes >= 0
    rows = np.repeat(np.arange(n), k).reshape(n, k)[chosen]
    size = labels.max(initial=0) + 1
    keys, counts = np.unique(rows * size + votes[chosen], return_counts=True)
    row, label = keys // size, keys % size
    order = np.lexsort((label, -counts, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    winners = np.full(n, -2)
    winners[row[first]] = label[first]
    return winners
