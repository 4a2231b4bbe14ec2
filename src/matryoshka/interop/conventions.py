"""The arithmetic between conventions: all in float64, some latents at a time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.weights import Weights

LATENTS = 1024
"""That are float64 at once."""
UNIT = 1e-3
"""How far from 1 the norm of a decoder row may be that counts as a unit vector."""


def blocks(d_sae: int) -> Iterator[slice]:
    """All latents, some at a time."""
    return (slice(start, start + LATENTS) for start in range(0, d_sae, LATENTS))


def reads_x_itself(weights: Weights) -> Weights:
    """Of a coder that reads x − b_dec, the one that reads x: b_enc − b_dec W_enc. Exact but for rounding."""
    return weights._replace(b_enc=_moved(weights, -1))


def reads_x_less_b_dec(weights: Weights) -> Weights:
    """Of a coder that reads x, the one that reads x − b_dec: b_enc + b_dec W_enc. Exact but for rounding."""
    return weights._replace(b_enc=_moved(weights, 1))


def _moved(weights: Weights, sign: int) -> Float[Tensor, " d_sae"]:
    """b_enc ± b_dec W_enc."""
    b_enc = torch.empty_like(weights.b_enc)
    for some in blocks(weights.d_sae):
        moved = weights.b_dec.double() @ weights.W_enc[:, some].double()
        b_enc[some] = (weights.b_enc[some].double() + sign * moved).to(b_enc.dtype)
    return b_enc


def row_norms(weights: Weights) -> Float[Tensor, " d_sae"]:
    """‖W_dec[j]‖, in float64."""
    return torch.cat([weights.W_dec[some].double().norm(dim=1) for some in blocks(weights.d_sae)])


def of_unit_rows(weights: Weights) -> Weights:
    """Every latent times the norm of its decoder row, which becomes a unit vector: the same reconstruction, of latents
    in units of what they write. A latent that writes nothing is never active. The threshold is left as it is; the other
    weights are written over."""
    all_norms = row_norms(weights)
    for some in blocks(weights.d_sae):
        norms = all_norms[some]
        weights.W_enc[:, some] = (weights.W_enc[:, some].double() * norms).to(weights.W_enc.dtype)
        weights.b_enc[some] = (weights.b_enc[some].double() * norms).to(weights.b_enc.dtype)
        rows = weights.W_dec[some].double() / torch.where(norms > 0, norms, 1)[:, None]
        weights.W_dec[some] = rows.to(weights.W_dec.dtype)
    return weights


def gated_as_jumprelu(weights: Weights, r_mag: Float[Tensor, " d_sae"], b_gate: Float[Tensor, " d_sae"]) -> Weights:
    """A gated coder is a JumpReLU: with s = exp(r_mag) and `b_enc` its b_mag, latents are s u·w + b_mag where that
    exceeds θ = max(0, b_mag − s b_gate) (Rajamanoharan et al. 2024, section 3.2). The weights are written over."""
    scale = r_mag.double().exp()
    threshold = (weights.b_enc.double() - scale * b_gate.double()).clamp(min=0).to(weights.b_enc.dtype)
    for some in blocks(weights.d_sae):
        weights.W_enc[:, some] = (weights.W_enc[:, some].double() * scale[some]).to(weights.W_enc.dtype)
    return weights._replace(threshold=threshold)
