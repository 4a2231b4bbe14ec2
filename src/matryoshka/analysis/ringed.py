"""The living latents of a coder of several rings, latent by latent: what parents and children are sought among."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from matryoshka.analysis.matching import FIRINGS, Living, sparse
from matryoshka.analysis.observed import Observed
from matryoshka.scores.result import NotMeasurable


class RingedLatents(NamedTuple):
    """On all recorded rows. Features are known by their places among the living ones, which ascend, as rings do."""

    living: Living
    rings: Int[np.ndarray, " living"]
    by_latent: sp.csc_array
    """float32 [rows, living]."""
    places: Int[np.ndarray, " rows"]
    """Of each row in the recording."""
    widths: tuple[int, ...]
    first_child: int
    """Those from here on are of no first ring."""
    parents: int
    """The first so many are of no last ring."""

    @classmethod
    def of(cls, observed: Observed) -> "RingedLatents":
        """Raises NotMeasurable for a coder of one ring, and where no feature of a later ring, or none of an earlier
        one, fires often enough."""
        recorded, widths = observed.recorded, observed.hooked.coder.widths
        if len(widths) == 1:
            raise NotMeasurable(
                f"{observed.name} has one ring of {widths[0]:,} latents: parents are of an earlier ring than children"
            )
        living = Living.of(recorded, recorded.kept)
        rings = np.searchsorted(widths, living.features, side="right")
        first_child, parents = np.searchsorted(rings, [1, len(widths) - 1]).tolist()
        if first_child == 0 or first_child == len(rings):
            which = "the first ring" if first_child == 0 else "a later ring"
            raise NotMeasurable(
                f"no latent of {which} of {observed.name} fires on {FIRINGS} of the {living.rows:,} tokens that count"
            )
        latents = sparse(recorded, recorded.kept, living.features, recorded.values).tocsc()
        return cls(living, rings, latents, np.flatnonzero(recorded.kept), widths, first_child, parents)

    def firing(self, latent: int) -> tuple[Int[np.ndarray, " firings"], Float[np.ndarray, " firings"]]:
        """(rows, values) where it fires, rows ascending."""
        own = slice(*self.by_latent.indptr[latent : latent + 2])
        return self.by_latent.indices[own], self.by_latent.data[own]

    def together(self, parent: int, child: int) -> tuple[Int[np.ndarray, " both"], Float[np.ndarray, "both 2"]]:
        """(rows, values of parent and child) where both fire, rows ascending."""
        (first, a), (second, b) = self.firing(parent), self.firing(child)
        rows, of_first, of_second = np.intersect1d(first, second, assume_unique=True, return_indices=True)
        return rows, np.stack([a[of_first], b[of_second]], 1)

    def indicators(self) -> sp.csc_array:
        """1 where each child fires: float32 [rows, children]."""
        start = self.by_latent.indptr[self.first_child]
        rows, starts = self.by_latent.indices[start:], self.by_latent.indptr[self.first_child :] - start
        return sp.csc_array((np.ones(len(rows), np.float32), rows, starts), (self.living.rows, len(starts) - 1))
