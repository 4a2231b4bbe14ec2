"""How a coder's features group: communities of those that fire together, and of those that write alike.

    tokens      features that fire on the same tokens            (phi, `affinity`)
    blocks      features that fire in the same blocks of text    (phi)
    geometry    features whose decoder rows point alike          (cosine)

1. the living features; those that fire on more than a tenth of the tokens (`affinity.DENSE`) are set apart, as they
   fire together with everything
2. three graphs of nearest neighbours beyond chance, and the communities of each (`communities`)
3. of each how far it is one: modularity of the communities of one half of the documents (of the dimensions of the
   rows) in the graph of the other half, and the agreement of the communities of both halves
4. how far the three agree: adjusted mutual information in pairs; and how well a feature's neighbours by decoder row
   tell which community it fires with

After Li et al. 2024 (arXiv:2410.19750). The null of a modularity is that of communities that are found in the same way
once every feature's firings are moved round within documents (tokens) or over all blocks, each by a distance of its
own, of at most NULL_FEATURES features: what features have in common by the documents that they fire in and by how often
they fire. For decoder rows the features' values of every dimension are exchanged. No two partitions can be expected to
agree more than those of two halves of the same do: that is their ceiling.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.analysis.affinity import (
    BLOCK,
    DENSE,
    LEAST,
    NEIGHBOURS,
    FiringTable,
    Neighbours,
    Views,
    by_direction,
    by_firing,
    gathered,
    multiplied,
    nearest_rows,
    sparse_firings,
)
from matryoshka.analysis.communities import (
    MEMBERS,
    FeatureSums,
    Labels,
    agreement,
    communities,
    described,
    modularity,
    told,
)
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.matching import FIRINGS, Living
from matryoshka.analysis.observed import Observed
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.reader import spread

VERSION = 1
SEED = 0
"""Of all that is exchanged, and of the halves of the dimensions."""
NULL_FEATURES = 4096

KINDS = {
    "tokens": "features that fire on the same tokens",
    "blocks": f"features that fire in the same blocks of {BLOCK} tokens",
    "geometry": "features whose decoder rows point alike",
}
HALVES = {"tokens": "the documents", "blocks": "the documents", "geometry": "the rows' dimensions"}
MOVED = {
    "tokens": "communities found with each feature's firings moved round within its documents",
    "blocks": "communities found with each feature's blocks moved round over all",
    "geometry": "communities found with the features' values of each dimension exchanged",
}


def _agreement(name: str, meaning: str, headline: bool = True) -> Measure:
    said = f"Adjusted mutual information of {meaning}: 1 if they are the same, 0 by chance"
    null = "labels exchanged among the features; measured, and 0 by definition"
    return Measure(name, "neither", said, unit="feature", null=null, paired=False, headline=headline)


PAIRS = {
    pair: _agreement(
        f"agreement of {pair[0]} and {pair[1]}", f"communities of {KINDS[pair[0]]} and of {KINDS[pair[1]]}"
    )
    for pair in combinations(KINDS, 2)
}
STABILITY = {
    kind: _agreement(f"stability of {kind}", f"communities of {of} in two halves of {HALVES[kind]}", headline=False)
    for kind, of in KINDS.items()
}
MODULARITY = {
    kind: Measure(
        f"modularity of {kind}",
        "neither",
        f"Σ (weight within − expected within) / weight of all edges, of {of}: communities of one half of {HALVES[kind]}"
        " in the graph of the other half",
        unit="feature",
        null=MOVED[kind],
        paired=False,
    )
    for kind, of in KINDS.items()
}
TOLD = {
    kind: Measure(
        f"{kind} by decoder",
        "neither",
        f"Balanced accuracy of telling a community of {KINDS[kind]} by the {NEIGHBOURS} nearest decoder rows, over"
        f" communities of {MEMBERS} or more",
        unit="feature",
        null="labels exchanged among the features",
        paired=False,
        percent=True,
    )
    for kind in ("tokens", "blocks")
}


def analyse(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Result:
    """How the features of a coder group; `progress` counts them, once for tokens and once for blocks. Raises
    NotMeasurable for too few features, a single document, or a text where no two fire together more than by chance."""
    living, dense, firings = sparse_firings(observed)
    rows = observed.decoder_rows(living.features).cpu().float()
    graphs = _graphs(firings, rows, progress)
    if not graphs["tokens"].whole.nnz:
        raise NotMeasurable(f"no two features of {observed.name} fire together more often than by chance")
    partitions = {kind: views.each(communities) for kind, views in graphs.items()}
    sums = dict(_sums(graphs, partitions, nearest_rows(rows)))
    for kind, null in _null_modularities(firings, rows, graphs).items():
        sums[MODULARITY[kind]] = sums[MODULARITY[kind]]._replace(null=null)
    return Result(
        tuple(_scores(sums, living, observed.hooked.coder.config.d_sae)), _details(living, dense, graphs, partitions)
    )


def _graphs(
    firings: FiringTable, rows: Float[Tensor, "n d"], progress: Progress = silent
) -> dict[str, Views[sp.csr_array]]:
    n = len(rows)
    of_kind = {
        "tokens": by_firing(firings, gathered, lambda done, _: progress(done, 2 * n)),
        "blocks": by_firing(firings.blocks(), multiplied, lambda done, _: progress(n + done, 2 * n)),
        "geometry": by_direction(rows, SEED),
    }
    return {kind: views.each(Neighbours.graph) for kind, views in of_kind.items()}


def _sums(
    graphs: dict[str, Views[sp.csr_array]], partitions: dict[str, Views[Labels]], neighbours: Neighbours
) -> Iterator[tuple[Measure, FeatureSums]]:
    for (one, other), measure in PAIRS.items():
        yield measure, agreement(partitions[one].whole, partitions[other].whole)
    for kind, measure in STABILITY.items():
        yield measure, agreement(partitions[kind].first, partitions[kind].second)
    for kind, measure in MODULARITY.items():
        yield measure, _elsewhere(graphs[kind], partitions[kind])
    for kind, measure in TOLD.items():
        yield measure, told(neighbours, partitions[kind].whole)


def _elsewhere(graphs: Views[sp.csr_array], partitions: Views[Labels]) -> FeatureSums:
    """The modularity of the communities of either half in the graph of the other."""
    above, below = modularity(graphs.second, partitions.first)
    other_above, other_below = modularity(graphs.first, partitions.second)
    numerator, denominator = above + other_above, below + other_below
    chosen = denominator > 0
    return FeatureSums(chosen, numerator[chosen], denominator[chosen], 0.0)


def _null_modularities(
    firings: FiringTable, rows: Float[Tensor, "n d"], graphs: dict[str, Views[sp.csr_array]]
) -> dict[str, float]:
    """By kind, of communities of at most NULL_FEATURES features that have nothing to do with one another, in the graphs
    of these features as they are."""
    chosen = spread(min(firings.n, NULL_FEATURES), firings.n)
    some, few = firings.sample(NULL_FEATURES), rows[torch.from_numpy(chosen)].numpy()
    blocks = some.blocks()
    by_chance = {
        "tokens": by_firing(some.rotated(some.documents, SEED), gathered),
        "blocks": by_firing(blocks.rotated(np.zeros_like(blocks.documents), SEED), multiplied),
        "geometry": by_direction(torch.from_numpy(np.random.default_rng(SEED).permuted(few, axis=0)), SEED),
    }
    nulls = {}
    for kind, views in by_chance.items():
        as_they_are = graphs[kind].each(lambda graph: sp.csr_array(graph[chosen][:, chosen]))
        sums = _elsewhere(as_they_are, views.each(Neighbours.graph).each(communities))
        nulls[kind] = float(sums.numerator.sum() / sums.denominator.sum()) if sums.measured else 0.0
    return nulls


def _scores(sums: dict[Measure, FeatureSums], living: Living, d_sae: int) -> Iterator[Score]:
    """Those that there is enough of."""
    for measure, of in sums.items():
        if of.chosen.sum() >= LEAST and of.measured:
            features = living.features[of.chosen]
            yield score(measure, d_sae, features, of.numerator, of.denominator, null=of.null)


def _details(
    living: Living,
    dense: Int[np.ndarray, " dense"],
    graphs: dict[str, Views[sp.csr_array]],
    partitions: dict[str, Views[Labels]],
) -> dict[str, Any]:
    labels = {kind: views.whole for kind, views in partitions.items()}
    return {
        "features": living.features.tolist(),
        "dense": dense.tolist(),
        "settings": {"firings": FIRINGS, "density": DENSE, "neighbours": NEIGHBOURS, "block": BLOCK},
        "edges": {kind: views.whole.nnz // 2 for kind, views in graphs.items()},
        "partitions": {kind: of_kind.tolist() for kind, of_kind in labels.items()},
        "communities": {
            kind: described(graphs[kind].whole, of_kind, living.features) for kind, of_kind in labels.items()
        },
    }
