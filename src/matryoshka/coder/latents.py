"""The sparse type between encoder and decoder: which latents are active on each row, and how strongly."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Located, Pre, Values, operations


class ByLatent(NamedTuple):
    """The entries of a pattern ordered latent by latent, rows ascending within each."""

    order: Entries
    """The places of these entries in the pattern."""
    rows: Entries
    indices: Entries
    offsets: Int[Tensor, " d_sae_plus_1"]
    """Latent j holds the entries `offsets[j]:offsets[j + 1]`."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a batch's entries lie (compressed sparse rows: BatchTopK rows differ in length): row i holds the entries
    `offsets[i]:offsets[i + 1]`, of the latents `indices`."""

    indices: Entries
    offsets: Int[Tensor, " batch_plus_1"]
    d_sae: int

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Entries:
        """The row of each entry."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> ByLatent:
        """The transposed pattern: encoder and decoder learn latent by latent."""
        return ByLatent(*operations(self.indices).transpose(self.indices, self.rows, self.d_sae))

    @classmethod
    def of(cls, located: Located, d_sae: int, by_latent: ByLatent | None = None) -> "Pattern":
        """Of entries whose rows are known, and maybe their order by latent."""
        indices, rows, offsets = located
        pattern = cls(indices, offsets, d_sae)
        pattern.__dict__["rows"] = rows
        if by_latent is not None:
            pattern.__dict__["by_latent"] = by_latent
        return pattern

    @property
    def located(self) -> Located:
        """What `of` makes a pattern of."""
        return self.indices, self.rows, self.offsets


class Latents(NamedTuple):
    """A batch's active latents: a pattern and its values.

    An entry may hold a zero: TopK keeps k entries a row even where fewer are positive, and JumpReLU in training keeps
    entries just below its threshold, which have a gradient. A latent is *active* where its value is positive.
    """

    pattern: Pattern
    values: Values

    @property
    def indices(self) -> Entries:
        """The latent of each entry."""
        return self.pattern.indices

    @property
    def offsets(self) -> Int[Tensor, " batch_plus_1"]:
        """Row i holds the entries `offsets[i]:offsets[i + 1]`."""
        return self.pattern.offsets

    @property
    def rows(self) -> Entries:
        """The row of each entry."""
        return self.pattern.rows

    @property
    def d_sae(self) -> int:
        """Latents in the dictionary."""
        return self.pattern.d_sae

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The same as one dense tensor, zeros where nothing is active."""
        flat = self.values.new_zeros(self.pattern.batch * self.d_sae)
        return flat.scatter_add(0, self.rows * self.d_sae + self.indices, self.values).view(-1, self.d_sae)

    def fired(self) -> Int[Tensor, " d_sae"]:
        """On how many rows each latent is active."""
        active = (self.values > 0).long()
        return torch.zeros(self.d_sae, dtype=torch.int64, device=active.device).scatter_add_(0, self.indices, active)

    def keep(self, places: Entries) -> "Latents":
        """The entries at `places` alone, which are ordered row by row as the entries are; without a gradient."""
        pattern = self.pattern
        kept = operations(places).keep(places, pattern.located, self.values.detach(), pattern.by_latent)
        located, values, by_latent = kept
        return Latents(Pattern.of(located, self.d_sae, ByLatent(*by_latent)), values)

    def first(self, width: int) -> "Latents":
        """The latents 0 … width − 1 alone."""
        inside = (self.indices < width).nonzero().squeeze(1)
        rows = self.rows[inside]
        offsets = torch.searchsorted(rows, torch.arange(self.pattern.batch + 1, device=rows.device))
        return Latents(Pattern.of((self.indices[inside], rows, offsets), width), self.values[inside])


def from_mask(pre: Pre, positions: Entries) -> Latents:
    """The entries of `pre` at ascending flat `positions` (row · d_sae + latent); gradients flow to `pre`."""
    batch, d_sae = pre.shape
    located = operations(positions).locate(positions, batch, d_sae)
    return Latents(Pattern.of(located, d_sae), pre.flatten().gather(0, positions))
