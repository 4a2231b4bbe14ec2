"""A map of a coder's features: each at a place in the plane, near those that it is like.

    geometry        decoder rows that point alike lie near one another       (cosine)
    coactivation    features that fire on the same tokens do                 (phi, `affinity`)

1. the living features, those that fire on more than a tenth of the tokens set apart
2. the nearest neighbours of each, by decoder rows all of them, by firings those beyond chance, as a fuzzy graph, and
   its layout: UMAP (McInnes et al. 2018, arXiv:1802.03426), from the first principal components
3. how far a map can be believed. Trustworthiness (Venna and Kaski 2001): near neighbours in the plane that are no near
   ones of the features count against it, by how far they are; and the share of a feature's NEIGHBOURS nearest in the
   plane that are so again with another seed

What islands there are and how they lie to one another is partly the layout's doing, and another seed's are others: what
is to be believed of a map is who lies next to whom, and only so far as the scores say.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from sklearn.neighbors import NearestNeighbors

from matryoshka.analysis.affinity import (
    NEIGHBOURS,
    Neighbours,
    alike,
    by_firing,
    gathered,
    nearest_rows,
    phi_of_all,
    sparse_firings,
)
from matryoshka.analysis.communities import communities
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.extras import extra
from matryoshka.analysis.matching import Living
from matryoshka.analysis.observed import Observed
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score
from matryoshka.study.reader import spread

VERSION = 1
SEEDS = (0, 1)
"""Of the map, and of the one that it is held against."""
EPOCHS = 200
SAMPLE = 2000
"""Features of which all pairs are ranked."""
KINDS = {"geometry": "decoder rows (cosine)", "coactivation": "firing on the same tokens (phi)"}

TRUSTWORTHINESS = {
    kind: Measure(
        f"trustworthiness of {kind}",
        "higher",
        f"1 − 2 / (n k (2n − 3k − 1)) Σ (rank − k) over those of the k = {NEIGHBOURS} nearest in the plane that are"
        f" none of the k nearest by {of}, of n ≤ {SAMPLE:,} features",
        unit="feature",
        null="features at random places",
        paired=False,
    )
    for kind, of in KINDS.items()
}
STABILITY = {
    kind: Measure(
        f"stability of {kind}",
        "higher",
        f"Share of a feature's {NEIGHBOURS} nearest in the map by {of} that are so in one of another seed",
        unit="feature",
        null="features exchanged among the places",
        paired=False,
        percent=True,
    )
    for kind, of in KINDS.items()
}


class Layout(NamedTuple):
    """Where features lie."""

    places: Float[np.ndarray, "n 2"]
    placed: Bool[np.ndarray, " n"]
    """Those that have neighbours; the others stand in a row below."""


def analyse(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Result:
    """A map of a coder's features; `progress` counts them while their neighbours are sought. Raises NotMeasurable
    without umap-learn, for too few features and for a single document."""
    extra("umap.umap_", "umap-learn", "map", "maps")
    living, dense, firings = sparse_firings(observed)
    rows = observed.decoder_rows(living.features).cpu().float()
    neighbours = {
        "geometry": nearest_rows(rows),
        "coactivation": by_firing(firings, gathered, progress).whole,
    }
    starts = {"geometry": rows.numpy(), "coactivation": neighbours["coactivation"].graph()}
    layouts = {kind: [layout(of, starts[kind], seed) for seed in SEEDS] for kind, of in neighbours.items()}
    graphs = {"geometry": alike(rows, SEEDS[0]).graph(), "coactivation": starts["coactivation"]}
    some = spread(min(len(rows), SAMPLE), len(rows))
    unit = torch.nn.functional.normalize(rows[torch.from_numpy(some)], dim=1)
    likeness = {"geometry": (unit @ unit.T).numpy(), "coactivation": phi_of_all(firings.sample(SAMPLE))}
    d_sae = observed.hooked.coder.config.d_sae
    scores = tuple(_scores(layouts, likeness, some, living, d_sae))
    maps = {kind: of_seeds[0] for kind, of_seeds in layouts.items()}
    return Result(scores, _details(observed, living, dense, maps, graphs))


def layout(neighbours: Neighbours, start: Any, seed: int) -> Layout:
    """Places of features by their neighbours; `start`: rows, dense or sparse, whose two first principal components they
    start from. The largest extent of the map is 1. Where hardly any have neighbours none is placed."""
    placed = neighbours.graph().sum(1) > 0
    if placed.sum() <= NEIGHBOURS:
        placed[:] = False
    places = np.zeros((len(placed), 2))
    if placed.any():
        number = np.where(placed, np.cumsum(placed) - 1, -1)
        other = np.where(neighbours.other[placed] >= 0, number[neighbours.other[placed]], -1)
        found = _umap(other, neighbours.value[placed], start[placed], seed)
        places[placed] = (found - found.min(0)) / np.ptp(found, axis=0).max()
    apart = int((~placed).sum())
    places[~placed] = np.column_stack([np.linspace(0, 1, apart), np.full(apart, -0.1)])
    return Layout(places, placed)


def _umap(
    other: Int[np.ndarray, "n k"], likeness: Float[np.ndarray, "n k"], start: Any, seed: int
) -> Float[np.ndarray, "n 2"]:
    """UMAP as its own class has it by default, but for the neighbours, which it would look for by itself."""
    umap = extra("umap.umap_", "umap-learn", "map", "maps")
    itself, random = np.arange(len(other))[:, None], np.random.RandomState(seed)
    indices, distances = np.hstack([itself, other]), np.hstack([np.zeros_like(itself), 1 - likeness])
    graph, _, _ = umap.fuzzy_simplicial_set(
        itself, indices.shape[1], random, "precomputed", knn_indices=indices, knn_dists=distances.astype(np.float32)
    )
    a, b = umap.find_ab_params(spread=1.0, min_dist=0.1)
    found, _ = umap.simplicial_set_embedding(
        start, graph, n_components=2, initial_alpha=1.0, a=a, b=b, gamma=1.0, negative_sample_rate=5, n_epochs=EPOCHS,
        init="pca", random_state=random, metric="euclidean", metric_kwds={}, densmap=False, densmap_kwds={},
        output_dens=False,
    )  # fmt: skip
    return found.astype(np.float64)


def untrustworthiness(likeness: Float[np.ndarray, "n n"], places: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """What of each feature counts against a map: 1 − the mean of them is `sklearn.manifold.trustworthiness`."""
    n, k = len(places), min(NEIGHBOURS, len(places) // 2 - 1)
    apart = -np.asarray(likeness, np.float64)
    np.fill_diagonal(apart, -np.inf)
    ranks = np.empty((n, n), np.int64)
    np.put_along_axis(ranks, apart.argsort(1, kind="stable"), np.arange(n)[None], 1)  # itself has 0
    near = nearest_places(places, k)
    over = np.maximum(0, np.take_along_axis(ranks, near, 1) - k)
    return over.sum(1) * 2 / (k * (2 * n - 3 * k - 1))


def nearest_places(places: Float[np.ndarray, "n 2"], k: int) -> Int[np.ndarray, "n k"]:
    """The k others nearest to each in the plane."""
    return NearestNeighbors(n_neighbors=k).fit(places).kneighbors(return_distance=False)


def kept(first: Float[np.ndarray, "n 2"], second: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Of each feature the share of its nearest in one map that are so in the other."""
    k = min(NEIGHBOURS, len(first) - 1)
    near, again = nearest_places(first, k), nearest_places(second, k)
    return (near[:, :, None] == again[:, None]).any(2).mean(1)


def _scores(
    layouts: dict[str, list[Layout]],
    likeness: dict[str, Float[np.ndarray, "n n"]],
    some: Int[np.ndarray, " n"],
    living: Living,
    d_sae: int,
) -> Iterator[Score]:
    """Of the features that are placed; of a kind that places too few nothing is said."""
    generator = np.random.default_rng(SEEDS[0])
    for kind, (one, other) in layouts.items():
        features, placed = living.features, one.placed
        chosen = placed[some]
        if chosen.sum() <= 2 * NEIGHBOURS:
            continue
        of_some = likeness[kind][np.ix_(chosen, chosen)]
        places = one.places[some[chosen]]
        trust, chance = (untrustworthiness(of_some, at) for at in (places, generator.random(places.shape)))
        yield score(TRUSTWORTHINESS[kind], d_sae, features[some[chosen]], 1 - trust, null=1 - chance.mean())
        first, second = one.places[placed], other.places[placed]
        null = kept(first, generator.permutation(second)).mean()
        yield score(STABILITY[kind], d_sae, features[placed], kept(first, second), null=null)


def _details(
    observed: Observed,
    living: Living,
    dense: Int[np.ndarray, " dense"],
    layouts: dict[str, Layout],
    graphs: dict[str, sp.csr_array],
) -> dict[str, Any]:
    widths = observed.hooked.coder.widths
    return {
        "features": living.features.tolist(),
        "dense": dense.tolist(),
        "layouts": {
            kind: dict(zip("xy", of_kind.places.T.round(3).tolist(), strict=True)) for kind, of_kind in layouts.items()
        },
        "apart": {kind: living.features[~of_kind.placed].tolist() for kind, of_kind in layouts.items()},
        "rings": np.searchsorted(widths, living.features, side="right").tolist(),
        "communities": {kind: communities(graph).tolist() for kind, graph in graphs.items()},
        "widths": list(widths),
    }
