"""Training losses: named terms, each a pure function of one batch, and the conventions that combine them.

All are in the coder's scaled units. The main term of every convention is made of the errors ‖y − ŷ_m‖² of the
prefixes alone (`sparse.nested_errors`). It weights all prefixes alike, so it learns from their sum. A convention
repeats how one project weights its terms, so that its runs can be repeated here:

    matryoshka           mean over prefixes of FVU_m; aux: FVU of the residual, × 1/32
    saelens              Σ over prefixes of the squared error a row; aux: squared error a row, × 1
    bussmann             mean over prefixes and the bare b_dec of the squared error an element; aux: the same, × 1/32
    dictionary_learning  Σ over prefixes of the squared error a row / M²; aux: FVU of the residual, × 1/32
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from matryoshka.coder.architecture import ConventionName
from matryoshka.coder.kernels import operations

Target = Float[Tensor, "batch d_out"]
Prefixes = Float[Tensor, "prefix batch d_out"]
Errors = Float[Tensor, " prefix"]
Scalar = Float[Tensor, ""]


def variance(y: Target) -> Scalar:
    """Σ over d_out of (y − ȳ)², mean over the batch, ȳ the batch's mean of each dimension."""
    return operations(y).variance(y)


def fvu(errors: Errors, y: Target) -> Errors:
    """Fraction of the batch's variance that leaves the `errors` ‖y − ŷ_m‖² (means over the batch)."""
    return errors / _spread(y)


def _spread(y: Target) -> Scalar:
    return variance(y).clamp(min=torch.finfo(y.dtype).tiny)


def squared_error(y: Target, y_hat: Target) -> Scalar:
    """Σ over d_out of (y − ŷ)², mean over the batch."""
    return (y - y_hat).square().sum(-1).mean()


class Convention(NamedTuple):
    """How one project weights the terms: the main one is made of (errors of the prefixes without a gradient, their sum,
    y, b_dec), the dead latents' one of (residual, its reconstruction)."""

    reconstruction: Callable[[Errors, Scalar, Target, Float[Tensor, " d_out"]], Scalar]
    aux: Callable[[Target, Target], Scalar]
    aux_coefficient: float


def _residual_fvu(residual: Target, r_hat: Target) -> Scalar:
    return fvu(squared_error(residual, r_hat)[None], residual)[0]


class _Mean(Function):
    """Mean of `parts`, each an error divided by `unit`. What it teaches it teaches the errors' `total`."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, total: Tensor, unit: Tensor) -> Tensor:
        ctx.save_for_backward(unit)
        ctx.number = len(parts)
        return parts.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        (unit,) = ctx.saved_tensors
        return None, grad_outputs[0] / ctx.number / unit, None


def _mean_fvu(errors: Errors, total: Scalar, y: Target, b_dec: Float[Tensor, " d_out"]) -> Scalar:
    unit = _spread(y)
    return _Mean.apply(errors / unit, total, unit)


def _with_bare_bias(errors: Errors, total: Scalar, y: Target, b_dec: Float[Tensor, " d_out"]) -> Scalar:
    bare = (y - b_dec).square().mean()
    return (bare + total / y.shape[1]) / (len(errors) + 1)


CONVENTIONS: dict[ConventionName, Convention] = {
    "matryoshka": Convention(_mean_fvu, _residual_fvu, 1 / 32),
    "saelens": Convention(lambda errors, total, *_: total, squared_error, 1.0),
    "bussmann": Convention(_with_bare_bias, lambda residual, r_hat: (residual - r_hat).square().mean(), 1 / 32),
    "dictionary_learning": Convention(lambda errors, total, *_: total / len(errors) ** 2, _residual_fvu, 1 / 32),
}
