"""Whether two coders have the same hierarchy: two seeds of one recipe, whose features are matched.

    agreement    edges of the first coder between matched features whose partners have an edge in the second / all such
    null         the same with partners exchanged at random among those of one ring of the second, SHUFFLES times

A coder agrees with itself wholly; two seeds are the ceiling of all other pairs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score

SHUFFLES, SEED = 100, 0
AGREEMENT = Measure(
    "agreement of edges",
    "neither",
    "Share of the first coder's edges between matched features whose partners have an edge in the second.",
    unit="edge",
    null=f"partners exchanged at random among those of one ring, mean of {SHUFFLES} times",
    paired=False,
    percent=True,
)


def agreement(first: Result, second: Result, pairs: Mapping[int, int]) -> Score:
    """Of the hierarchies of two coders; `pairs`: of features of the first their partners in the second, such as those
    that `correspondence` finds kept. Raises NotMeasurable where no edge of the first has both features matched."""
    size = second.details["rings"][-1]
    known = np.full(first.details["rings"][-1], -1)
    known[[*pairs]] = [*pairs.values()]
    own, other = _standing(first.details), _standing(second.details)
    own = own[(known[own] >= 0).all(1)]
    if not len(own):
        raise NotMeasurable(f"none of the {len(pairs):,} matched features of the first coder has a matched parent")
    there = other @ [size, 1]
    agrees = np.isin(known[own] @ [size, 1], there)
    generator = np.random.default_rng(SEED)
    shuffled = (_shuffled(known, second.details["rings"], generator) for _ in range(SHUFFLES))
    null = np.mean([np.isin(partners[own] @ [size, 1], there).mean() for partners in shuffled])
    return score(AGREEMENT, first.details["rings"][-1], map("{0[0]} {0[1]}".format, own), agrees, null=float(null))


def _standing(details: Mapping[str, Any]) -> Int[np.ndarray, "edges 2"]:
    """(parent, child) of the edges that stand."""
    edges = details["edges"]
    return np.array([edges["parent"], edges["child"]], np.int64).T[np.array(edges["stands"], bool)]


def _shuffled(
    partners: Int[np.ndarray, " features"], widths: list[int], generator: np.random.Generator
) -> Int[np.ndarray, " features"]:
    """The partners in another order, within each ring of theirs; −1 stays where it is."""
    partners, rings = partners.copy(), np.where(partners < 0, -1, np.searchsorted(widths, partners, side="right"))
    for ring in range(len(widths)):
        members = np.flatnonzero(rings == ring)
        partners[members] = generator.permutation(partners[members])
    return partners
