"""Some latents of a coder, that learn apart from the whole."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Inputs, operations
from matryoshka.coder.losses import Target


@dataclass(frozen=True, eq=False)
class Subset:
    """Some latents as a small dense coder of their own: copies of their weights, so that its backward pass touches
    nothing of the whole dictionary. Their gradients are added afterwards (`SparseCoder.add_gradients`)."""

    index: Int[Tensor, " n"]
    encoder: Float[Tensor, "n d_in"]
    biases: Float[Tensor, " n"]
    decoder: Float[Tensor, "n d_out"]

    def reconstruct(self, x: Inputs, some: Bool[Tensor, " n"], k: int) -> Target:
        """What the `k` largest positive pre-activations of each row decode to, without b_dec, of `some` of these
        latents: one dense product."""
        biases = self.biases.masked_fill(~some, -torch.inf)
        values = torch.addmm(biases, x, self.encoder.T).relu()
        if k < values.shape[1]:
            largest = operations(values).topk(values.detach(), k)
            values = values * torch.zeros_like(values, dtype=torch.bool).scatter_(1, largest, True)
        return values @ self.decoder
