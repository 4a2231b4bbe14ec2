"""Parents of each feature among those of earlier rings, by where they fire and by what they reconstruct there.

    candidate   parent p of an earlier ring than child c that covers it (scores/coverage.py): the lower bound of
                P(p | c) ≥ ½, lift ≥ 2; and P(c | p) < 1. Of each child the PARENTS with the largest Jaccard index are
                tested
    gain        where c fires, r = y − ŷ + a_p d_p is what is to be explained without p:
                1 − Σ‖r − a_p d_p‖² / Σ‖r‖², the share of it that p explains
    null        the same of the MATCHED features of p's ring that fire nearly as often as p (nearest in log density),
                less those that cover c too: the QUANTILE-th of them, or 0 where that is less
    stands      gain > null
    direct      stands, and no other feature stands between: p is no parent of another parent of c

All sums are exact, over all recorded rows. ‖r‖² is ‖y − ŷ‖² and what p adds to it (`contributions`), so that Σ‖r‖² of
all pairs are sums of one number an entry. Earlier rings have smaller numbers: a parent's is less than its child's.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matryoshka.analysis.contributions import Contributions
from matryoshka.analysis.matching import sparse, together
from matryoshka.analysis.ringed import RingedLatents
from matryoshka.progress import Progress, silent
from matryoshka.scores.coverage import PARENTS, covers
from matryoshka.study.recording import RecordedCoder

MATCHED = 20
"""Features that a parent is held against: one in twenty exceeds their 95th percentile."""
QUANTILE = 0.95
TOLD_PROGRESS = 64
"""Children between two reports of progress."""


class CandidateEdges(NamedTuple):
    """The candidates of one or several children that were tested, an entry a pair; features by their numbers."""

    parent: Int[np.ndarray, " edges"]
    child: Int[np.ndarray, " edges"]
    coverage: Float[np.ndarray, " edges"]
    """P(parent fires | child fires)."""
    lift: Float[np.ndarray, " edges"]
    share: Float[np.ndarray, " edges"]
    """P(child fires | parent fires)."""
    gain: Float[np.ndarray, " edges"]
    matched: Int[np.ndarray, "edges matched"]
    """Features as dense as the parent, the nearest first; −1 where its ring has fewer."""
    matched_gain: Float[np.ndarray, "edges matched"]
    """NaN of those that cover the child themselves, and where there is none."""


class Edges(NamedTuple):
    """What was tested, child by child, and what stands."""

    tested: CandidateEdges
    null: Float[np.ndarray, " edges"]
    stands: Bool[np.ndarray, " edges"]
    direct: Bool[np.ndarray, " edges"]
    left_out: int
    """Candidates that were not tested, for their child has PARENTS better ones."""

    @classmethod
    def of(cls, tested: CandidateEdges, left_out: int) -> "Edges":
        """By the gains of what was tested."""
        null = _nulls(tested.matched_gain)
        stands = tested.gain > null
        return cls(tested, null, stands, _direct(tested.parent, tested.child, stands), left_out)

    def by_chance(self) -> Float[np.ndarray, "edges matched"]:
        """Of each matched feature whether its gain exceeds its edge's null too; NaN where it is not counted."""
        gains = self.tested.matched_gain
        return np.where(np.isnan(gains), np.nan, gains > self.null[:, None])

    def stand_ins(self, which: Bool[np.ndarray, " edges"]) -> Float[np.ndarray, "chosen matched"]:
        """Of each of these edges whether its child would have a parent too, among these edges, if the parent were
        exchanged for each of the features that are as dense as it is; NaN where there is none."""
        parent, child, matched = (of[which] for of in (self.tested.parent, self.tested.child, self.tested.matched))
        size = 1 + max(parent.max(initial=0), child.max(initial=0), matched.max(initial=0))
        known = np.isin(child[:, None] * size + matched, child * size + parent)
        return np.where(matched < 0, np.nan, known)


def find_edges(
    recorded: RecordedCoder, ringed: RingedLatents, contributed: Contributions, progress: Progress = silent
) -> Edges:
    """The edges among a coder's living latents; `progress` counts children."""
    features, all_firings, rings = ringed.living.features, ringed.living.firings, ringed.rings
    children, parents = features[ringed.first_child :], features[: ringed.parents]
    firings, parents_firings = all_firings[ringed.first_child :], all_firings[: ringed.parents]
    fires, rows = ringed.indicators(), ringed.living.rows
    added = sparse(recorded, recorded.kept, parents, contributed.added)
    left = fires.T @ contributed.left
    matched = density_matched(parents_firings, rings[: ringed.parents])
    earlier = np.searchsorted(rings, rings[ringed.first_child :])  # features of rings before each child's
    parts, left_out = [_empty()], 0
    for c, both, sums in together(fires, added, len(parents), None):
        among = slice(0, earlier[c])
        candidates = _candidates(both[among], firings[c], parents_firings[among], rows)
        chosen = _largest_jaccard(candidates, both, firings[c] + parents_firings)
        left_out += len(candidates) - len(chosen)
        others = matched[chosen]
        counted = (others >= 0) & ~np.isin(others, candidates)
        gains = np.divide(sums, left[c] + sums, out=np.zeros_like(sums), where=sums != 0)
        parts.append(
            CandidateEdges(
                parents[chosen],
                np.full(len(chosen), children[c]),
                both[chosen] / firings[c],
                both[chosen] * (rows / firings[c]) / parents_firings[chosen],
                both[chosen] / parents_firings[chosen],
                gains[chosen],
                np.where(others >= 0, parents[others], -1),
                np.where(counted, gains[others], np.nan),
            )
        )
        if c % TOLD_PROGRESS == 0 or c + 1 == len(firings):
            progress(c + 1, len(firings))
    return Edges.of(CandidateEdges(*map(np.concatenate, zip(*parts, strict=True))), left_out)


def _empty() -> CandidateEdges:
    numbers, none = np.empty(0, np.int64), np.empty(0)
    return CandidateEdges(
        numbers, numbers, none, none, none, none, np.empty((0, MATCHED), np.int64), np.empty((0, MATCHED))
    )


def _candidates(
    both: Int[np.ndarray, " n"], firings: np.integer, parents_firings: Int[np.ndarray, " n"], rows: int
) -> Int[np.ndarray, " candidates"]:
    """Which of n features that fire together with a child `both` times cover it."""
    most = np.flatnonzero(2 * both > firings)  # so many have to, and few do
    both, parents_firings = both[most], parents_firings[most]
    return most[covers(both / firings, firings, parents_firings, rows) & (both < parents_firings)]


def _largest_jaccard(
    candidates: Int[np.ndarray, " candidates"], both: Int[np.ndarray, " n"], either: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " chosen"]:
    """At most PARENTS of them; `either`: firings of both features, those together counted twice."""
    jaccard = both[candidates] / (either[candidates] - both[candidates])
    return candidates[np.argsort(-jaccard, kind="stable")[:PARENTS]]


def density_matched(firings: Int[np.ndarray, " n"], rings: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n matched"]:
    """For each feature the MATCHED others of its ring that are nearest in log density, the nearest first; −1 where it
    has fewer."""
    matched = np.full((len(firings), MATCHED), -1)
    for ring in np.unique(rings):
        members = np.flatnonzero(rings == ring)
        members = members[np.argsort(firings[members], kind="stable")]
        density, own = np.log(firings[members]), np.arange(len(members))[:, None]
        # sorted, the nearest so many lie among as many on either side
        others = own + np.delete(np.arange(-MATCHED, MATCHED + 1), MATCHED)
        inside = (others >= 0) & (others < len(members))
        distances = np.where(inside, np.abs(density[others.clip(0, len(members) - 1)] - density[own]), np.inf)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :MATCHED]
        others, inside = (np.take_along_axis(of, nearest, 1) for of in (others, inside))
        matched[members] = np.where(inside, members[others.clip(0, len(members) - 1)], -1)
    return matched


def _nulls(gains: Float[np.ndarray, "edges matched"]) -> Float[np.ndarray, " edges"]:
    """The least of each row that QUANTILE of it do not exceed, of what is no NaN; at least 0."""
    counts = (~np.isnan(gains)).sum(1)
    place = (np.ceil(QUANTILE * counts).astype(np.int64) - 1).clip(min=0)
    quantiles = np.take_along_axis(np.sort(gains, axis=1), place[:, None], 1)[:, 0]  # NaNs come last
    return np.where(counts > 0, np.maximum(quantiles, 0), 0)


def _direct(
    parent: Int[np.ndarray, " edges"], child: Int[np.ndarray, " edges"], stands: Bool[np.ndarray, " edges"]
) -> Bool[np.ndarray, " edges"]:
    parents: dict[int, set[int]] = {}
    for p, c in zip(parent[stands].tolist(), child[stands].tolist(), strict=True):
        parents.setdefault(c, set()).add(p)
    direct = stands.copy()
    for edge in np.flatnonzero(stands):
        p, c = int(parent[edge]), int(child[edge])
        direct[edge] = not any(p in parents.get(between, ()) for between in parents[c])
    return direct


def depths(parent: Int[np.ndarray, " edges"], child: Int[np.ndarray, " edges"]) -> dict[int, int]:
    """Of each feature in these edges how many stand above it in the longest chain; 0 of roots."""
    depth: dict[int, int] = {}
    for edge in np.argsort(child, kind="stable"):  # who has parents comes after them
        p, c = int(parent[edge]), int(child[edge])
        depth[c] = max(depth.get(c, 0), depth.setdefault(p, 0) + 1)
    return depth
