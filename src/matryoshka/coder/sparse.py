# pyright: reportIncompatibleMethodOverride=false
# once_differentiable forgets ctx's name
"""The two linear maps of a sparse coder, at its active entries only, and their gradients.

    pre_activations   z_e = ⟨x[row_e], W_enc[:, latent_e]⟩ + b_enc[latent_e] for every entry e of a pattern
    nested_decode     ŷ_m = Σ_{j < n_m} latents_j W_dec[j] for every prefix n_m of `widths`
    nested_errors     ‖y − ŷ_m‖² of every prefix, and their sum, which teaches

A step costs one dense product, the one that *selects* (it has no gradient, and may be of low precision: then it only
proposes, and `exact_values` decide); all else touches k entries a row. Both weights learn latent by latent: ∂W[j] is a
weighted sum of the rows on which j is active, of the inputs, or of the errors that the prefixes holding j leave.

Prefix m of widths n₁ < … < n_M = d_sae reconstructs from latents 0 … n_m − 1. The latents between two widths are a
*ring*. Every prefix is the sum of its rings, so each latent is decoded once, into its ring, and the prefixes are one
cumulative sum: M prefixes cost what one costs, forward and backward.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from matryoshka.coder.kernels import Inputs, operations
from matryoshka.coder.kernels.reference import ring_of
from matryoshka.coder.latents import Latents, Pattern
from matryoshka.coder.losses import Errors, Prefixes, Target

Rows = Float[Tensor, "d_sae d_out"]
Widths = Sequence[int] | Int[Tensor, " prefix"]


def random_widths(m: int, d_sae: int, generator: torch.Generator) -> tuple[int, ...]:
    """At most `m` ascending widths that end with d_sae: m − 1 draws of a Pareto(0.5) truncated to [1, d_sae], equal
    ones counted once, and the full one. Random prefixes after Nabeshima (2024)."""
    uniform = torch.rand(m - 1, generator=generator, dtype=torch.float64)
    # inverse of the distribution function (1 − n^−½)/(1 − d_sae^−½)
    draws = (1 - uniform * (1 - d_sae**-0.5)) ** -2
    return tuple(sorted({*draws.long().clamp(1, d_sae).tolist(), d_sae}))


@torch.no_grad()
def exact_values(
    inputs: Inputs, W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], candidates: Latents
) -> Latents:
    """`candidates` with their values made exact: inner products in the weights' own precision."""
    return candidates._replace(values=operations(inputs).exact(inputs, W_enc.T, b_enc, candidates.pattern.by_latent))


def pre_activations(
    inputs: Inputs, W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], selected: Latents
) -> Latents:
    """`selected`, whose values are exact, made differentiable."""
    return selected._replace(values=_PreActivations.apply(inputs, W_enc, b_enc, selected.pattern, selected.values))


def nested_decode(latents: Latents, W_dec: Rows, widths: Sequence[int]) -> Prefixes:
    """Σ_{j < n_m} latents_j W_dec[j] for every prefix n_m of `widths`, each latent decoded once. `widths` may end
    before d_sae: what lies beyond is not decoded."""
    if widths[-1] < latents.d_sae:
        latents, W_dec = latents.first(widths[-1]), W_dec[: widths[-1]]
    return _RingSums.apply(latents.values, W_dec, latents.pattern, tuple(widths)).cumsum(0)


def nested_errors(
    latents: Latents, W_dec: Rows, target: Target, widths: Widths, bias: Float[Tensor, " d_out"] | None = None
) -> tuple[Errors, Float[Tensor, ""], Target]:
    """‖target − ŷ_m‖², mean over the batch, for every prefix m, ŷ as `nested_decode` gives it and the bias; their sum;
    and what is too much, ŷ_M − target, for as long as there was no backward pass.

    Only the sum has a gradient: with one weight for all prefixes, what each latent learns from is known before the
    weight is. The last of `widths` is d_sae. They may be a tensor, where they change from step to step.
    """
    if not isinstance(widths, Tensor):
        widths = _on_device(tuple(widths), target.device)
    return _NestedErrors.apply(latents.values, W_dec, target, bias, latents.pattern, widths)


@cache
def _on_device(widths: tuple[int, ...], device: torch.device) -> Int[Tensor, " prefix"]:
    """Sent once: a GPU would be waited for every time, and a captured step reads what it has read before."""
    return torch.tensor(widths, device=device)


class _PreActivations(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, W_enc: Tensor, b_enc: Tensor, pattern: Pattern, values: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, W_enc)
        ctx.pattern = pattern
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (inputs, W_enc), pattern = grad_outputs, ctx.saved_tensors, ctx.pattern
        ops, by = operations(inputs), pattern.by_latent
        of_inputs = of_W = of_b = None
        if ctx.needs_input_grad[0]:
            of_inputs = ops.bags(W_enc.T, pattern.indices, grad, pattern.offsets)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_rows, of_b = ops.encoder_gradients(inputs, grad, by)
            of_W = of_rows.T
        return of_inputs, of_W, of_b, None, None


class _RingSums(Function):
    """What the latents of each ring decode to on each row, each latent once: [ring, batch, d_out]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern, widths: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern, ctx.widths = pattern, widths
        ops, bags = operations(W_dec), len(widths) * pattern.batch
        order, offsets = ops.group(ring_of(pattern.indices, widths) * pattern.batch + pattern.rows, bags)
        sums = ops.bags(W_dec, pattern.indices[order], values[order], offsets)
        return sums.view(len(widths), pattern.batch, W_dec.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (values, W_dec), pattern = grad_outputs, ctx.saved_tensors, ctx.pattern
        ops, by = operations(W_dec), pattern.by_latent
        grad = grad.reshape(-1, W_dec.shape[1])
        rows = ring_of(by.indices, ctx.widths) * pattern.batch + by.rows
        of_values = of_W = None
        if ctx.needs_input_grad[0]:
            sorted_grad = ops.dots(grad, W_dec, rows, by.indices)
            of_values = torch.empty_like(sorted_grad).scatter_(0, by.order, sorted_grad)
        if ctx.needs_input_grad[1]:
            of_W = ops.bags(grad, rows, values[by.order], by.offsets)
        return of_values, of_W, None, None


class _NestedErrors(Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, target: Tensor, bias: Tensor | None, pattern: Pattern, widths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums, left = operations(W_dec).prefix_errors(W_dec, values, *pattern.located, target, bias, widths)
        ctx.save_for_backward(values, W_dec)
        ctx.pattern, ctx.widths, ctx.left = pattern, widths, left
        errors, excess = sums / len(target), left[-1]
        ctx.mark_non_differentiable(errors, excess)
        ctx.set_materialize_grads(False)  # nobody wants zeros of these two
        return errors, errors.sum(), excess

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (values, W_dec), pattern, left = ctx.saved_tensors, ctx.pattern, ctx.left
        del ctx.left  # may be overwritten below, so there is no second backward pass
        scale = grad_outputs[1] / (pattern.batch / 2)
        of_target, of_bias = ctx.needs_input_grad[2:4]
        parts = left, scale, W_dec, values, pattern.by_latent, ctx.widths
        *gradients, added = operations(W_dec).prefix_gradients(*parts, each_row=of_target)
        if not of_target:  # then it is summed over the rows already
            return *gradients, None, added if of_bias else None, None, None
        return *gradients, added.neg(), added.sum(0) if of_bias else None, None, None
