"""A coder's function in plain tensors: what programs that read and write coders of other formats work on."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Weights(NamedTuple):
    """In raw units: pre = x W_enc + b_enc; ŷ = b_dec + activation(pre) W_dec (+ x W_skip). Nothing is taken off x."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    threshold: Tensor | None = None
    """[d_sae], θ of a JumpReLU; [], that of a BatchTopK at inference; None of other activations."""

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.W_enc.shape[1]

    def prefix(self, width: int) -> "Weights":
        """Of the first `width` latents alone: views."""
        some = slice(width)
        each = self.threshold is not None and self.threshold.dim() == 1
        return self._replace(
            W_enc=self.W_enc[:, some],
            b_enc=self.b_enc[some],
            W_dec=self.W_dec[some],
            threshold=self.threshold[some] if each and self.threshold is not None else self.threshold,
        )
