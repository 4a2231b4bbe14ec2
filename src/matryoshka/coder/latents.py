"""The sparse type between encoder and decoder: which latents are active on each row, and how strongly."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Pre, Values, operations


class ByLatent(NamedTuple):
    """The entries of a pattern ordered latent by latent, rows ascending within each."""

    order: Entries
    """The places of these entries in the pattern."""
    rows: Entries
    indices: Entries
    offsets: Int[Tensor, " d_sae_plus_1"]
    """Latent j holds the entries `offsets[j]:offsets[j + 1]`."""

    def keep(self, places: Entries) -> "ByLatent":
        """Of the entries at `places` of the pattern alone, which are counted anew; nothing is sorted again."""
        counted = torch.arange(len(places), device=places.device)
        now = torch.full_like(self.order, -1).scatter_(0, places, counted)[self.order]
        kept = operations(places).places(now >= 0, len(places))
        return ByLatent(now[kept], self.rows[kept], self.indices[kept], torch.searchsorted(kept, self.offsets))


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
        order, offsets = operations(self.indices).group(self.indices, self.d_sae)
        return ByLatent(order, self.rows[order], self.indices[order], offsets)

    @classmethod
    def of_rows(cls, indices: Entries, rows: Entries, batch: int, d_sae: int) -> "Pattern":
        """Of entries whose ascending rows are known."""
        pattern = cls(indices, _offsets(rows, batch), d_sae)
        pattern.__dict__["rows"] = rows
        return pattern

    def keep(self, places: Entries) -> "Pattern":
        """The entries at `places` alone, which are ordered row by row as the entries are."""
        kept = Pattern.of_rows(self.indices[places], self.rows[places], self.batch, self.d_sae)
        kept.__dict__["by_latent"] = self.by_latent.keep(places)  # in place of what would sort them
        return kept


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
        """The entries at `places` alone, which are ordered row by row as the entries are."""
        return Latents(self.pattern.keep(places), self.values[places])

    def first(self, width: int) -> "Latents":
        """The latents 0 … width − 1 alone."""
        inside = (self.indices < width).nonzero().squeeze(1)
        pattern = Pattern.of_rows(self.indices[inside], self.rows[inside], self.pattern.batch, width)
        return Latents(pattern, self.values[inside])


def from_mask(pre: Pre, positions: Entries) -> Latents:
    """The entries of `pre` at ascending flat `positions` (row · d_sae + latent); gradients flow to `pre`."""
    batch, d_sae = pre.shape
    rows = positions // d_sae
    values = pre.flatten().gather(0, positions)
    return Latents(Pattern.of_rows(positions - rows * d_sae, rows, batch, d_sae), values)


def _offsets(rows: Entries, batch: int) -> Int[Tensor, " batch_plus_1"]:
    """Where each row begins, given the ascending rows of the entries."""
    return torch.searchsorted(rows, torch.arange(batch + 1, device=rows.device))
