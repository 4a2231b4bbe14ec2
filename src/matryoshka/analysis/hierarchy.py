"""Parents and children over the rings of a Matryoshka coder: which early features later ones are details of.

    1. contributions    one more pass over the text: what each active latent adds to the reconstruction
    2. edges            who covers whom by firing, and explains there what density-matched features do not
    3. suspects         parents that are silent just where a child that points alike fires: absorption, maybe
    4. what follows     children of each feature, the longest chain above each, examples with their text

Coverage and reconstruction after Tree SAE's conditions; what a ring is: Bussmann et al. 2025 (arXiv:2503.17547).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matryoshka.analysis.contributions import contributions
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.edges import MATCHED, QUANTILE, Edges, depths, find_edges
from matryoshka.analysis.matching import FIRINGS
from matryoshka.analysis.observed import Observed
from matryoshka.analysis.passages import passages
from matryoshka.analysis.ringed import RingedLatents
from matryoshka.analysis.suspects import (
    COLLAPSE,
    COMPARED,
    COSINE,
    AlikePairs,
    Collapse,
    TokenTypes,
    alike,
    exchanged_parents,
)
from matryoshka.progress import Progress, silent
from matryoshka.scores.coverage import COVERAGE, LIFT, PARENTS
from matryoshka.scores.result import Measure, Result, Score, score

VERSION = 1
EXAMPLES = 3
"""Of an edge or suspect."""
EXAMPLED = 1000
"""Edges that have examples, and suspects that have: those that stand out most. A page of all would be gigabytes."""

_of_features = partial(Measure, better="neither", unit="feature", paired=False)
_stand_ins = f"each parent exchanged for the {MATCHED} features of its ring nearest in density, where these stand too"
_passing = f"of those {MATCHED} features, which do not cover the child, on the same tokens"
WITH_PARENT = _of_features(
    "with a parent",
    meaning="Share of living features beyond the first ring that have a parent in an earlier one: it covers the child"
    f" (lower bound of P(parent | child) ≥ {COVERAGE}, lift ≥ {LIFT:g}, P(child | parent) < 1) and its gain exceeds its"
    " null.",
    null=_stand_ins,
    percent=True,
)
STANDING = _of_features(
    "candidates that stand",
    meaning="Share of covering features of earlier rings whose gain exceeds the 95th percentile of features that are"
    " as dense as they are; resampled by child.",
    null=f"share {_passing}, that exceeds it too",
    percent=True,
)
GAIN = _of_features(
    "gain",
    meaning="1 − Σ‖y − ŷ‖² / Σ‖y − ŷ + a_p d_p‖² where the child fires: the share of what is to be explained without"
    " the parent p that p explains, mean over candidates; resampled by child.",
    null=f"mean {_passing}",
)
CHILDREN = _of_features(
    "children",
    meaning="Mean number of children of the living features before the last ring, without those that are children of"
    " another child.",
    null=_stand_ins,
)
DEPTH = _of_features(
    "depth",
    meaning="Longest chain of parents above a feature, mean over the living features beyond the first ring.",
    null=_stand_ins,
)
SUSPECTS = _of_features(
    "absorption suspects",
    meaning="Share of living features beyond the first ring with a parent that they may have absorbed: decoder rows"
    f" with cosine ≥ {COSINE}, and the parent is silent where the child fires, though it fires on tokens of the same"
    " types without the child. A suspicion.",
    null="the parent of another pair of the same rings with the nearest cosine",
    percent=True,
)
MEASURES = (WITH_PARENT, STANDING, GAIN, CHILDREN, DEPTH, SUSPECTS)


def analyse(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Result:
    """The hierarchy of one coder; `progress` counts tokens that are read again, then children.

    Raises NotMeasurable for a coder of one ring, and where features of either side do not fire often enough.
    """
    ringed = RingedLatents.of(observed)
    edges = find_edges(observed.recorded, ringed, contributions(observed, corpus, progress), progress)
    suspected = Suspected.of(observed, ringed)
    return Result(tuple(_scores(ringed, edges, suspected)), _details(observed, corpus, ringed, edges, suspected))


class Suspected(NamedTuple):
    """Pairs of features that point alike, and whether one may have absorbed the other."""

    types: TokenTypes
    pairs: AlikePairs
    collapse: Collapse
    null_children: int
    """That have a suspect when parents are exchanged."""

    @classmethod
    def of(cls, observed: Observed, ringed: RingedLatents) -> "Suspected":
        """Among the living features of a coder."""
        types = TokenTypes(ringed, np.asarray(observed.recorded.tokens)[ringed.places].astype(np.int64))
        pairs = alike(observed.decoder_rows(ringed.living.features), ringed.rings)
        null = exchanged_parents(pairs, ringed.rings)
        by_chance = null.child[types.collapse(null).suspect]
        return cls(types, pairs, types.collapse(pairs), len(np.unique(by_chance)))

    @property
    def found(self) -> Int[np.ndarray, " suspects"]:
        """Which pairs are suspected, the deepest collapse first."""
        expected, coverage = self.collapse.expected, self.collapse.coverage
        suspects = np.flatnonzero(self.collapse.suspect)
        return suspects[np.argsort(coverage[suspects] - expected[suspects], kind="stable")]


# --- scores


def _scores(ringed: RingedLatents, edges: Edges, suspected: Suspected) -> Iterator[Score]:
    features, width = ringed.living.features, ringed.widths[-1]
    children, parents = features[ringed.first_child :], features[: ringed.parents]
    tested, stands, direct = edges.tested, edges.stands, edges.direct
    by_chance = _depths_by_chance(edges)
    null = _mean([sum(depth > 0 for depth in of_rank.values()) for of_rank in by_chance]) / len(children)
    yield score(WITH_PARENT, width, children, np.isin(children, tested.child[stands]), null=null)
    if len(tested.child):
        units, place = np.unique(tested.child, return_inverse=True)
        for measure, values, chance in (
            (STANDING, stands.astype(float), edges.by_chance()),
            (GAIN, tested.gain, tested.matched_gain),
        ):
            null = float(_means(chance).mean())
            yield score(measure, width, units, np.bincount(place, values), np.bincount(place), null)
    numbers = np.bincount(np.searchsorted(parents, tested.parent[direct]), minlength=len(parents))
    null = float(_means(edges.stand_ins(direct)).sum()) / len(parents)
    yield score(CHILDREN, width, parents, numbers, null=null)
    depth = depths(tested.parent[stands], tested.child[stands])
    null = _mean([sum(of_rank.values()) for of_rank in by_chance]) / len(children)
    yield score(DEPTH, width, children, [depth.get(child, 0) for child in children.tolist()], null=null)
    suspects = np.isin(children, features[suspected.pairs.child[suspected.found]])
    yield score(SUSPECTS, width, children, suspects, null=suspected.null_children / len(children))


def _depths_by_chance(edges: Edges) -> list[dict[int, int]]:
    """The depths that would be left if the parents were exchanged for those of one rank among the features as dense as
    they are: of the edges whose child has that feature as a parent too. Of each rank that any ring has."""
    stand_ins, stands = edges.stand_ins(edges.stands), edges.stands
    matched, child = edges.tested.matched[stands], edges.tested.child[stands]
    ranks = (rank for rank in range(MATCHED) if not np.isnan(stand_ins[:, rank]).all())
    return [depths(matched[left, rank], child[left]) for rank in ranks for left in [stand_ins[:, rank] == 1]]


def _mean(values: list[int]) -> float:
    return sum(values) / max(1, len(values))


def _means(values: Float[np.ndarray, "edges matched"]) -> Float[np.ndarray, " edges"]:
    """Of each row, of what is no NaN; 0 where nothing is."""
    return np.nansum(values, 1) / np.maximum(1, (~np.isnan(values)).sum(1))


# --- details


def _details(
    observed: Observed, corpus: Corpus, ringed: RingedLatents, edges: Edges, suspected: Suspected
) -> dict[str, Any]:
    """Edges and suspects with examples, the passages of these; depth; what the report and its figures need."""
    tested, living = edges.tested, ringed.living
    columns = {
        "parent": tested.parent,
        "child": tested.child,
        "coverage": tested.coverage,
        "lift": tested.lift,
        "share": tested.share,
        "gain": tested.gain,
        "null": edges.null,
        "stands": edges.stands,
        "direct": edges.direct,
    }
    of_edges, of_suspects = _edge_examples(ringed, edges), _suspects(ringed, suspected)
    shown = [example["place"] for of in (of_edges, of_suspects["examples"]) for some in of for example in some]
    depth = depths(tested.parent[edges.stands], tested.child[edges.stands])
    named = sorted({*tested.parent.tolist(), *tested.child.tolist(), *of_suspects["parent"], *of_suspects["child"]})
    firings = living.firings[np.searchsorted(living.features, named)] if named else np.empty(0, np.int64)
    return {
        "edges": {name: values.tolist() for name, values in columns.items()} | {"examples": of_edges},
        "suspects": of_suspects,
        "passages": passages(observed.recorded, shown, corpus.token_bytes),
        "depth": [{"feature": feature, "depth": depth[feature]} for feature in sorted(depth)],
        "rings": list(ringed.widths),
        "living": np.bincount(ringed.rings, minlength=len(ringed.widths)).tolist(),
        "tokens": living.rows,
        "firings": {"feature": named, "firings": firings.tolist()},
        "left_out": edges.left_out,
        "suspected": len(suspected.found),
        "alike": len(suspected.pairs.child),
        "judged": int((suspected.collapse.compared >= COMPARED).sum()),
        "cuts": {
            "firings": FIRINGS, "coverage": COVERAGE, "lift": LIFT, "parents": PARENTS, "matched": MATCHED,
            "quantile": QUANTILE, "cosine": COSINE, "collapse": COLLAPSE,
        },
    }  # fmt: skip


def _edge_examples(ringed: RingedLatents, edges: Edges) -> list[list[dict[str, Any]]]:
    """Of each edge where both fire and the child most strongly; of those that do not stand out enough none."""
    examples: list[list[dict[str, Any]]] = [[] for _ in edges.stands]
    above = np.where(edges.stands, edges.tested.gain - edges.null, -np.inf)
    for edge in np.argsort(-above, kind="stable")[: min(EXAMPLED, int(edges.stands.sum()))].tolist():
        pair = (int(of[edge]) for of in (edges.tested.parent, edges.tested.child))
        rows, values = ringed.together(*np.searchsorted(ringed.living.features, [*pair]).tolist())
        strongest = np.argsort(-values[:, 1], kind="stable")[:EXAMPLES]
        examples[edge] = [_example(ringed, int(rows[i]), *values[i].tolist()) for i in strongest.tolist()]
    return examples


def _suspects(ringed: RingedLatents, suspected: Suspected) -> dict[str, list[Any]]:
    """The columns of the suspects that stand out most; their examples: where the child fires most strongly and the
    parent does not, although it does on most tokens of that type without the child."""
    found = suspected.found[:EXAMPLED]
    pairs, features, collapse = suspected.pairs.at(found), ringed.living.features, suspected.collapse
    examples: list[list[dict[str, Any]]] = [[] for _ in found]
    for pair, with_parent, rates in suspected.types.rates(pairs):
        rows, values = ringed.firing(int(pairs.child[pair]))
        missing = np.flatnonzero(~with_parent & (rates >= COVERAGE))
        strongest = missing[np.argsort(-values[missing], kind="stable")[:EXAMPLES]]
        examples[pair] = [_example(ringed, int(rows[i]), 0.0, float(values[i])) for i in strongest.tolist()]
    return {
        "parent": features[pairs.parent].tolist(),
        "child": features[pairs.child].tolist(),
        "cosine": pairs.cosine.tolist(),
        "coverage": collapse.coverage[found].tolist(),
        "expected": collapse.expected[found].tolist(),
        "examples": examples,
    }


def _example(ringed: RingedLatents, row: int, parent: float, child: float) -> dict[str, Any]:
    return {"place": int(ringed.places[row]), "parent": parent, "child": child}
