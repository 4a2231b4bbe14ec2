"""Which parents may be absorbed by a child: they point alike, and the parent is silent just where the child fires.

    pairs       parent p of an earlier ring than child c, decoder rows with cosine ≥ COSINE; of each child the PARENTS
                most alike
    compared    the child's firings on types of tokens that also occur without it
    expected    P(p fires | same type of token, c silent), mean over these firings: what p does on such tokens
    coverage    P(p fires | c fires) on these firings
    suspect     expected ≥ ½, and the upper bound of coverage (Wilson, 95 %) is at most COLLAPSE · expected

It is a suspicion: a child that takes the parent's place writes the parent's direction too, and so points alike, but so
may a feature of another sense of the same token. And a child that fires on all tokens of its types is never suspected:
nothing is left to compare it with.

Null: the parent is exchanged for that of another pair of the same two rings whose cosine is as nearly the same as can
be, one that does not point like this child. What feature absorption is: Chanin et al. 2024 (arXiv:2409.14507).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.analysis.ringed import RingedLatents
from matryoshka.scores.coverage import COVERAGE, PARENTS, wilson_lower

COSINE = 0.3
"""What a row shares with another by chance has a standard deviation of 1/√d: 0.036 in 768 dimensions, 0.09 in 128."""
COLLAPSE = 0.5
COMPARED = 10
"""Firings of the child that can be compared, at least."""
ROWS = 512
"""Decoder rows multiplied at once."""
NEIGHBOURS = 16
"""Pairs on either side, by cosine, among which a parent is sought for the null."""


class AlikePairs(NamedTuple):
    """Pairs of living features, by their places among them."""

    parent: Int[np.ndarray, " pairs"]
    child: Int[np.ndarray, " pairs"]
    cosine: Float[np.ndarray, " pairs"]

    def at(self, chosen: np.ndarray) -> "AlikePairs":
        """These of them."""
        return AlikePairs(*(values[chosen] for values in self))


class Collapse(NamedTuple):
    """Of each pair: how often the parent fires on tokens of the child's types without the child, and with it."""

    compared: Int[np.ndarray, " pairs"]
    expected: Float[np.ndarray, " pairs"]
    coverage: Float[np.ndarray, " pairs"]

    @property
    def suspect(self) -> Bool[np.ndarray, " pairs"]:
        """See the module's docstring."""
        highest = 1 - wilson_lower(1 - self.coverage, np.maximum(self.compared, 1))
        enough = (self.compared >= COMPARED) & (self.expected >= COVERAGE)
        return enough & (highest <= COLLAPSE * self.expected)


@torch.no_grad()
def alike(rows: Float[Tensor, "living d"], rings: Int[np.ndarray, " living"]) -> AlikePairs:
    """The pairs of these decoder rows, whose rings ascend, that point alike: child by child, the most alike first."""
    unit = torch.nn.functional.normalize(rows.cpu().float(), dim=1)
    parts = [AlikePairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for ring in np.unique(rings)[1:]:
        earlier, end = np.searchsorted(rings, [ring, ring + 1]).tolist()
        for start in range(earlier, end, ROWS):
            cosines = unit[start : min(start + ROWS, end)] @ unit[:earlier].T
            best = cosines.topk(min(PARENTS, earlier))
            child, rank = (best.values >= COSINE).nonzero(as_tuple=True)
            found = best.indices[child, rank], start + child, best.values[child, rank].double()
            parts.append(AlikePairs(*(values.numpy() for values in found)))
    return AlikePairs(*map(np.concatenate, zip(*parts, strict=True)))


def exchanged_parents(pairs: AlikePairs, rings: Int[np.ndarray, " living"]) -> AlikePairs:
    """The same children with the parents of other pairs, see the module's docstring; without those that have none."""
    living = len(rings)
    keys = pairs.child * living + pairs.parent
    order = np.lexsort([pairs.cosine, rings[pairs.child], rings[pairs.parent]])
    pairs, parent = pairs.at(order), np.full(len(order), -1)
    group = rings[pairs.parent] * living + rings[pairs.child]
    for step in sorted((step for step in range(-NEIGHBOURS, NEIGHBOURS + 1) if step), key=abs):
        other = np.arange(len(order)) + step
        inside, other = (other >= 0) & (other < len(order)), other.clip(0, len(order) - 1)
        unlike = ~np.isin(pairs.child * living + pairs.parent[other], keys)
        fits = (parent < 0) & inside & unlike & (group[other] == group)
        parent[fits] = pairs.parent[other[fits]]
    return pairs._replace(parent=parent).at(parent >= 0)


class TokenTypes:
    """Where latents fire, and on tokens of which type."""

    def __init__(self, ringed: RingedLatents, tokens: Int[np.ndarray, " rows"]) -> None:
        """`tokens`: of the rows."""
        self._ringed = ringed
        _, self._types, self._counts = np.unique(tokens, return_inverse=True, return_counts=True)

    def collapse(self, pairs: AlikePairs) -> Collapse:
        """Of each pair."""
        compared, (expected, coverage) = np.zeros(len(pairs.child), np.int64), np.zeros((2, len(pairs.child)))
        for pair, with_parent, rates in self.rates(pairs):
            known = ~np.isnan(rates)
            if known.any():
                compared[pair], expected[pair] = known.sum(), rates[known].mean()
                coverage[pair] = with_parent[known].mean()
        return Collapse(compared, expected, coverage)

    def rates(
        self, pairs: AlikePairs
    ) -> Iterator[tuple[int, Bool[np.ndarray, " firings"], Float[np.ndarray, " firings"]]]:
        """Of every pair, those of one parent after another: (pair, whether the parent fires too where the child does,
        how often it does on tokens of that type where the child is silent: NaN where it never is)."""
        with_parent, size = np.zeros(len(self._types), bool), len(self._counts)
        parent, rows, of_parent = -1, np.empty(0, np.int32), np.empty(0, np.int64)
        for pair in np.argsort(pairs.parent, kind="stable").tolist():
            if pairs.parent[pair] != parent:
                with_parent[rows] = False
                parent = int(pairs.parent[pair])
                rows, _ = self._ringed.firing(parent)
                with_parent[rows] = True
                of_parent = np.bincount(self._types[rows], minlength=size)
            places, _ = self._ringed.firing(int(pairs.child[pair]))
            types, both = self._types[places], with_parent[places]
            silent = self._counts[types] - np.bincount(types, minlength=size)[types]
            alone = of_parent[types] - np.bincount(types[both], minlength=size)[types]
            yield pair, both, np.divide(alone, silent, out=np.full(len(types), np.nan), where=silent > 0)
