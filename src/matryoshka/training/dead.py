"""The dead latents' term: what has not fired for long learns to reconstruct what the others leave.

The dead latents are gathered into a small dense coder of their own. Its weights are copies, so that its backward pass
touches nothing of the whole dictionary; their gradients are added to the coder's afterwards.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.losses import residual_reconstruction

REFRESH = 8
"""Steps between two listings of the dead. To list them the host has to know their number, and would wait for a GPU. A
latent that fires in between is left out at once; one that dies waits for the next listing."""


class DeadLatents(nn.Module):
    """Which latents did not fire in the last `after_tokens` tokens. `listed` is part of a checkpoint."""

    listed: Tensor

    def __init__(self, coder: SparseCoder, after_tokens: int) -> None:
        super().__init__()
        self.after_tokens = after_tokens
        self.register_buffer("listed", torch.zeros_like(coder.tokens_since_fired, dtype=torch.bool))
        self._index: Int[Tensor, " dead"] | None = None

    def part(self, coder: SparseCoder, step: int) -> "DeadPart | None":
        """The dead of `coder` at the beginning of `step`; None if there are none."""
        dead = coder.dead(self.after_tokens)
        if step % REFRESH == 0:
            self.listed.copy_(dead)
            self._index = None
        if self._index is None:  # also after a resume
            self._index = self.listed.nonzero().squeeze(1)
        return gather(coder, self._index, dead[self._index]) if len(self._index) else None


@dataclass(frozen=True, eq=False)
class DeadPart:
    """Copies of some latents' weights, whose gradients are collected apart."""

    index: Int[Tensor, " dead"]
    still: Bool[Tensor, " dead"]
    """Which of them are dead by now: the others take no part."""
    encoder: Float[Tensor, "dead d_in"]
    biases: Float[Tensor, " dead"]
    decoder: Float[Tensor, "dead d_out"]

    def reconstruct(self, inputs: Float[Tensor, "batch d_in"], k_aux: int) -> Float[Tensor, "batch d_out"]:
        """What they make of the residual, at most `k_aux` of them on each row."""
        pre = torch.addmm(self.biases, inputs, self.encoder.T).masked_fill(~self.still, 0)
        return residual_reconstruction(pre, self.decoder, k_aux)

    @torch.no_grad()
    def add_gradients(self, coder: SparseCoder) -> None:
        """Add what they have learned to the gradients of `coder`, after the backward pass."""
        _gradient(coder.W_enc).T[self.index] += _gradient(self.encoder)
        _gradient(coder.b_enc)[self.index] += _gradient(self.biases)
        _gradient(coder.W_dec)[self.index] += _gradient(self.decoder)


def gather(coder: SparseCoder, index: Int[Tensor, " dead"], still: Bool[Tensor, " dead"]) -> DeadPart:
    """The latents `index` of `coder`."""
    whole = (coder.W_enc.T, coder.b_enc, coder.W_dec)
    return DeadPart(index, still, *(weights.detach()[index].requires_grad_() for weights in whole))


def _gradient(weights: Tensor) -> Tensor:
    if weights.grad is None:
        raise RuntimeError("there are no gradients yet: add them after the backward pass")
    return weights.grad
