"""The sparse type between encoder and decoder: which latents are active on each row, and how strongly."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Latents(NamedTuple):
    """A batch's active latents in rows (compressed sparse rows: BatchTopK rows differ in length).

    Row i holds the entries `offsets[i]:offsets[i + 1]`. An entry may hold a zero: TopK keeps k entries a row even where
    fewer are positive, and JumpReLU in training keeps entries just below its threshold, which have a gradient. A latent
    is *active* where its value is positive.
    """

    indices: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    offsets: Int[Tensor, " batch_plus_1"]
    d_sae: int

    @property
    def rows(self) -> Int[Tensor, " entries"]:
        """The row of each entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(counts, output_size=len(self.indices))

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The same as one dense tensor, zeros where nothing is active."""
        flat = self.values.new_zeros((len(self.offsets) - 1) * self.d_sae)
        return flat.scatter_add(0, self.rows * self.d_sae + self.indices, self.values).view(-1, self.d_sae)

    def fired(self) -> Int[Tensor, " d_sae"]:
        """On how many rows each latent is active."""
        return torch.bincount(self.indices[self.values > 0], minlength=self.d_sae)


def from_mask(pre: Float[Tensor, "batch d_sae"], positions: Int[Tensor, " entries"]) -> Latents:
    """Latents with the values of `pre` at ascending flat `positions` (row · d_sae + latent); gradients flow to
    `pre`."""
    batch, d_sae = pre.shape
    counts = torch.bincount(positions // d_sae, minlength=batch)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Latents(positions % d_sae, pre.flatten().gather(0, positions), offsets, d_sae)
