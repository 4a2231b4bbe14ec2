"""What carries a concept: how much of a direction each latent writes, and whether that is absorption.

With p̂ the concept's direction at the written site, |p̂| = 1, and the concept's *main* latents given, for each row:

    carried_j = latent_j (W_dec[j] · p̂)
    whole     = (y − b_dec − x W_skip) · p̂ = Σ_j carried_j + (y − ŷ) · p̂         what there is to carry

    full absorption    no main latent fires, whole > 0, and the latent that carries most has a cosine ≥ FULL_COSINE with
                       p̂ and carries ≥ SHARE of the whole
    fraction           with A carried by the (at most) ABSORBERS other latents that carry most, each with a cosine ≥
                       FRACTION_COSINE, and M by the main ones: 0 if M ≥ whole or A < SHARE · whole, 1 if M ≤ 0,
                       otherwise A' / (A' + M) with A' = min(A, whole − M)

Both are SAEBench's (Karvonen et al. 2025, arXiv:2503.09532; the fraction is Demian Till's), but for one thing: its
whole is y · p̂, so that its shares depend on how large b_dec · p̂, which no latent carries, happens to be.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
SHARE = 0.4
ABSORBERS = 3


class Direction(NamedTuple):
    """A concept's direction, as a dictionary writes it."""

    along: Float[np.ndarray, " latents"]
    """W_dec[j] · p̂: what one unit of each latent carries."""
    cosines: Float[np.ndarray, " latents"]
    whole: Float[np.ndarray, " rows"]
    """What there is to carry on each row."""

    @classmethod
    def of(
        cls,
        direction: Float[np.ndarray, " d_out"],
        W_dec: Float[np.ndarray, "latents d_out"],
        target: Float[np.ndarray, "rows d_out"],
    ) -> "Direction":
        """`target`: y − b_dec − x W_skip of each row, in the units of W_dec times latents."""
        unit = direction / np.linalg.norm(direction)
        along, norms = W_dec @ unit, np.linalg.norm(W_dec, axis=1)
        return cls(along, along / np.where(norms > 0, norms, 1), target @ unit)


class Absorbed(NamedTuple):
    """Of each row."""

    full: Bool[np.ndarray, " rows"]
    fraction: Float[np.ndarray, " rows"]
    latent: Int[np.ndarray, " rows"]
    """The one that carries most."""
    by_latent: Float[np.ndarray, " rows"]
    """What it carries."""
    by_main: Float[np.ndarray, " rows"]
    by_all: Float[np.ndarray, " rows"]


def absorbed(latents: sp.csr_array, direction: Direction, main: Int[np.ndarray, " main"]) -> Absorbed:
    """Full absorption and the absorption fraction of some rows, as the module's docstring defines them.

    `latents`: [rows, latents], the first of those that `direction` is of, or all; one fires where it is positive.
    """
    along, cosines, whole = direction
    of_main = np.isin(latents.indices, main)
    values = latents.data * along[latents.indices]
    rows = np.repeat(np.arange(len(whole)), np.diff(latents.indptr))

    def sums(kept: Bool[np.ndarray, " entries"]) -> Float[np.ndarray, " rows"]:
        return np.bincount(rows, values * kept, len(whole)).astype(np.float64)  # of no entries at all it is integers

    # a copy: argmax sorts the entries of its rows in place, and the masks here are of theirs as they come
    carried = sp.csr_array((values, latents.indices, latents.indptr), shape=latents.shape, copy=True)
    latent, by_latent = np.asarray(carried.argmax(axis=1)), carried.max(axis=1).toarray().ravel()
    fires = np.bincount(rows, of_main & (latents.data > 0), len(whole)) > 0
    full = ~fires & (whole > 0) & (cosines[latent] >= FULL_COSINE) & (by_latent >= SHARE * whole)

    may_absorb = np.flatnonzero(~of_main & (values > 0) & (cosines[latents.indices] >= FRACTION_COSINE))
    may_absorb = may_absorb[np.lexsort((-values[may_absorb], rows[may_absorb]))]  # largest first in each row
    place = np.arange(len(may_absorb)) - np.searchsorted(rows[may_absorb], rows[may_absorb])
    absorbs = np.zeros_like(of_main)
    absorbs[may_absorb[place < ABSORBERS]] = True
    by_main, by_others = sums(of_main), sums(absorbs)
    counted = (whole > 0) & (by_main < whole) & (by_others >= SHARE * whole)
    lacking = np.minimum(by_others, whole - by_main)
    some = counted & (by_main > 0)
    fraction = np.where(some, lacking / np.where(some, lacking + by_main, 1), counted)
    return Absorbed(full, fraction, latent, by_latent, by_main, sums(np.ones_like(of_main)))
