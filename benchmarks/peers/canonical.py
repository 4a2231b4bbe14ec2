"""What a contender has learned, in one form for all: whatever stands around its weights is folded into them.

    pre = x W_enc + b_enc;  latents = the selected ones of pre, where positive;  x_hat = latents W_dec + b_dec

Selecting from `pre` is selecting as the contender itself does. x are the rows as they were handed out.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Canonical(NamedTuple):
    """Weights in float32; `threshold`, if it has one, is what it selects by at inference."""

    W_enc: Tensor
    """[d, d_sae]"""
    b_enc: Tensor
    W_dec: Tensor
    """[d_sae, d]"""
    b_dec: Tensor
    threshold: Tensor | None
    """a number, or one for each latent [d_sae]"""

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations [rows, d_sae] of x [rows, d]."""
        return torch.addmm(self.b_enc, x, self.W_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """x_hat [rows, d] of dense latents [rows, d_sae]."""
        return torch.addmm(self.b_dec, latents, self.W_dec)

    def select(self, architecture: str, pre: Tensor, k: int) -> Tensor:
        """Dense latents [rows, d_sae] as in training: the k largest of each row (topk), those above their own
        thresholds (jumprelu), otherwise the k · rows largest of them all; where they are positive."""
        if architecture == "jumprelu":
            assert self.threshold is not None, "that is what it learns"
            return select_above(self.threshold, pre)
        if architecture == "topk":
            top = pre.topk(k, dim=1)
            return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        values = pre.relu().flatten()
        top = values.topk(k * len(pre))
        return torch.zeros_like(values).scatter(0, top.indices, top.values).view_as(pre)

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(weights.isfinite().all()) for weights in self if weights is not None)

    def save(self, file: Path) -> None:
        """As safetensors."""
        named = {name: weights for name, weights in self._asdict().items() if weights is not None}
        save_file({name: weights.detach().float().cpu().contiguous() for name, weights in named.items()}, file)

    @classmethod
    def load(cls, file: Path) -> "Canonical":
        """What `save` has written."""
        return cls(**{"threshold": None, **load_file(file)})


def select_above(threshold: Tensor, pre: Tensor) -> Tensor:
    """Dense latents [rows, d_sae]: those above the threshold, where they are positive."""
    return pre.relu() * (pre > threshold)
