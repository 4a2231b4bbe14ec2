"""Some latents of a coder as a small dense coder of their own.

Its weights are copies, so that its backward pass touches nothing of the whole dictionary; their gradients are added to
the coder's afterwards (`SparseCoder.add_gradients`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.losses import residual_reconstruction


@dataclass(frozen=True, eq=False)
class Subset:
    """Copies of some latents' weights, whose gradients are collected apart."""

    index: Int[Tensor, " n"]
    encoder: Float[Tensor, "n d_in"]
    biases: Float[Tensor, " n"]
    decoder: Float[Tensor, "n d_out"]

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"], some: Bool[Tensor, " n"], k: int
    ) -> Float[Tensor, "batch d_out"]:
        """What the `k` largest positive pre-activations of each row decode to, without b_dec, of `some` of these
        latents."""
        pre = torch.addmm(self.biases, x, self.encoder.T).masked_fill(~some, 0)
        return residual_reconstruction(pre, self.decoder, k)
