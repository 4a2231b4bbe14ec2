"""Training losses: named terms, each a pure function of one batch, and the conventions that combine them.

All take targets `y [batch, d_out]` and the nested reconstructions `y_hat [prefix, batch, d_out]` in the coder's scaled
units. A convention repeats how one project weights its terms, so that its runs can be repeated here:

    matryoshka           mean over prefixes of FVU_m; aux: FVU of the residual, × 1/32
    saelens              Σ over prefixes of the squared error a row; aux: squared error a row, × 1
    bussmann             mean over prefixes and the bare b_dec of the squared error an element; aux: the same, × 1/32
    dictionary_learning  Σ over prefixes of the squared error a row / M²; aux: FVU of the residual, × 1/32
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ConventionName = Literal["matryoshka", "saelens", "bussmann", "dictionary_learning"]

Target = Float[Tensor, "batch d_out"]
Nested = Float[Tensor, "prefix batch d_out"]
Scalar = Float[Tensor, ""]


def squared_error(y: Target, y_hat: Nested) -> Float[Tensor, " prefix"]:
    """Σ over d_out of (y − ŷ)², mean over the batch, for each prefix."""
    return (y - y_hat).square().sum(-1).mean(-1)


def variance(y: Target) -> Scalar:
    """Σ over d_out of (y − ȳ)², mean over the batch, ȳ the batch's mean of each dimension."""
    return (y - y.mean(0)).square().sum(-1).mean()


def fvu(y: Target, y_hat: Nested) -> Float[Tensor, " prefix"]:
    """Fraction of the batch's variance unexplained by each prefix."""
    return squared_error(y, y_hat) / variance(y).clamp(min=torch.finfo(y.dtype).tiny)


def residual_reconstruction(
    pre: Float[Tensor, "batch d_sae"],
    dead: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    k_aux: int,
) -> Target:
    """What the `k_aux` largest positive pre-activations of *dead* latents alone decode to, without b_dec.

    One dense product over the compacted dead subset. Gradients reach the dead latents' encoder and decoder.
    """
    index = dead.nonzero().squeeze(1)
    values = pre[:, index].relu()
    if k_aux < len(index):
        top = values.topk(k_aux, dim=1, sorted=False)
        values = torch.zeros_like(values).scatter(1, top.indices, top.values)
    return values @ W_dec[index]


def l0_deviation(l0: Scalar, k: int) -> Scalar:
    """(L0/k − 1)²: JumpReLU's sparsity term with a target, as Rajamanoharan et al. (2024) suggest."""
    return (l0 / k - 1).square()


class Convention(NamedTuple):
    """How one project weights the terms."""

    reconstruction: Callable[[Target, Nested, Float[Tensor, " d_out"]], Scalar]
    """(y, y_hat, b_dec) → the main term."""
    aux: Callable[[Target, Target], Scalar]
    """(residual, its reconstruction) → the dead latents' term."""
    aux_coefficient: float


def _residual_fvu(residual: Target, r_hat: Target) -> Scalar:
    return fvu(residual, r_hat[None])[0]


def _with_bare_bias(y: Target, y_hat: Nested, b_dec: Float[Tensor, " d_out"]) -> Scalar:
    bare = (y - b_dec).square().mean()
    return (bare + (y - y_hat).square().mean((1, 2)).sum()) / (len(y_hat) + 1)


CONVENTIONS: dict[ConventionName, Convention] = {
    "matryoshka": Convention(lambda y, y_hat, _: fvu(y, y_hat).mean(), _residual_fvu, 1 / 32),
    "saelens": Convention(
        lambda y, y_hat, _: squared_error(y, y_hat).sum(),
        lambda residual, r_hat: squared_error(residual, r_hat[None])[0],
        1.0,
    ),
    "bussmann": Convention(_with_bare_bias, lambda residual, r_hat: (residual - r_hat).square().mean(), 1 / 32),
    "dictionary_learning": Convention(
        lambda y, y_hat, _: squared_error(y, y_hat).sum() / len(y_hat) ** 2, _residual_fvu, 1 / 32
    ),
}
