"""The dead latents' term: what has not fired for long learns to reconstruct what the others leave."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import operations
from matryoshka.coder.latents import Latents
from matryoshka.coder.subset import Subset

REFRESH = 8
"""Steps between two listings of the dead. To list them the host has to know their number, and would wait for a GPU. A
latent that fires in between is left out at once; one that dies waits for the next listing."""
LEAST_LISTED = 256
"""Latents in a GPU's list, which grows by so many, or by a quarter of a power of two: a graph of the step holds for one
length."""


class Dead(NamedTuple):
    """The latents that are listed."""

    subset: Subset
    now: Bool[Tensor, " listed"]
    """Which of them are dead at this moment: the others take no part."""


class DeadLatents(nn.Module):
    """Which latents did not fire in the last `after_tokens` tokens. Its buffers are part of a checkpoint."""

    tokens_since_fired: Tensor
    listed: Tensor

    def __init__(self, d_sae: int, after_tokens: int, refresh: int = REFRESH) -> None:
        super().__init__()
        self.after_tokens, self.refresh = after_tokens, refresh
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("listed", torch.zeros(d_sae, dtype=torch.bool))
        self._index: Int[Tensor, " dead"] | None = None

    @property
    def now(self) -> Bool[Tensor, " d_sae"]:
        """Those that are dead."""
        return self.tokens_since_fired >= self.after_tokens

    @torch.no_grad()
    def count(self, latents: Latents) -> None:
        """A batch has been seen."""
        pattern, silent = latents.pattern, self.tokens_since_fired
        operations(silent).count_silence_(silent, latents.values, pattern.by_latent, pattern.batch)

    def listed_at(self, step: int) -> Int[Tensor, " listed"] | None:
        """The dead of the last listing, which may be of this very `step`; None if there were none. On a GPU others
        stand behind them, up to a length that seldom changes."""
        if step % self.refresh == 0:
            self.listed.copy_(self.now)
            self._index = None
        if self._index is None:  # also after a resume
            self._index = self._list()
        return self._index if len(self._index) else None

    def _list(self) -> Int[Tensor, " listed"]:
        length = int(self.listed.sum())
        if length and self.listed.device.type != "cpu":
            quarter = max(LEAST_LISTED, 2 ** length.bit_length() // 8)
            length = min(len(self.listed), math.ceil(length / quarter) * quarter)
        return self.listed.byte().sort(descending=True, stable=True).indices[:length]

    def part(self, coder: SparseCoder, listed: Int[Tensor, " listed"]) -> Dead:
        """Of `coder`, the latents of a list that `listed_at` gave."""
        return Dead(coder.subset(listed), self.now[listed])
