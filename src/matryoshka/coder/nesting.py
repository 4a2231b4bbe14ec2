"""Widths (the nested prefixes of the dictionary), the nested reconstruction and its errors.

Prefix m of widths n₁ < … < n_M = d_sae reconstructs from latents 0 … n_m − 1. The latents between two widths are a
*ring*. Every prefix is the sum of its rings, so each latent is decoded once, into its ring, and the prefixes are one
cumulative sum: M prefixes cost what one costs, forward and backward.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.coder.sparse import prefix_errors, ring_sums


def random_widths(m: int, d_sae: int, generator: torch.Generator) -> tuple[int, ...]:
    """At most `m` ascending widths that end with d_sae: m − 1 draws of a Pareto(0.5) truncated to [1, d_sae] and the
    full one.

    Random prefixes after Nabeshima (2024); equal draws count once.
    """
    uniform = torch.rand(m - 1, generator=generator, dtype=torch.float64)
    # inverse of the distribution function (1 − n^−½)/(1 − d_sae^−½)
    draws = (1 - uniform * (1 - d_sae**-0.5)) ** -2
    return tuple(sorted({*draws.long().clamp(1, d_sae).tolist(), d_sae}))


def nested_decode(
    latents: Latents, W_dec: Float[Tensor, "d_sae d_out"], widths: Sequence[int]
) -> Float[Tensor, "prefix batch d_out"]:
    """Σ_{j < n_m} latents_j W_dec[j] for every prefix n_m of `widths`, each latent decoded once.

    `widths` may end before d_sae: what lies beyond is not decoded.
    """
    if widths[-1] < latents.d_sae:
        latents, W_dec = latents.first(widths[-1]), W_dec[: widths[-1]]
    return ring_sums(latents, W_dec, widths).cumsum(0)


def nested_errors(
    latents: Latents,
    W_dec: Float[Tensor, "d_sae d_out"],
    target: Float[Tensor, "batch d_out"],
    widths: Sequence[int],
) -> tuple[Float[Tensor, " prefix"], Float[Tensor, "batch d_out"]]:
    """‖target − ŷ_m‖², mean over the batch, for every prefix m, ŷ as `nested_decode` gives it; and target − ŷ_M.

    Made for training: the reconstructions are not kept beside their errors, and the second result has no gradient.
    """
    sums, residual = prefix_errors(ring_sums(latents, W_dec, widths), target)
    return sums / len(target), residual
