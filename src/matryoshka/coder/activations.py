"""Activation functions: pre-activations [batch, d_sae] → sparse latents.

    TopK        the k largest of each row, where positive
    BatchTopK   the k·B largest positive ones of the batch (Bussmann et al. 2024); at inference one threshold for all
    JumpReLU    those above a threshold learned for each latent (Rajamanoharan et al. 2024)

In training mode a module selects as in training, in eval mode as at inference. A new activation is a class here and a
line in `build`. All are positively homogeneous once `rescale` has scaled their thresholds along, so constants fold.
"""

import math
from collections.abc import Callable
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matryoshka.coder.latents import Latents, from_mask

ActivationName = Literal["topk", "batchtopk", "jumprelu"]


def batch_topk_positions(pre: Float[Tensor, "batch d_sae"], n: int) -> Int[Tensor, " entries"]:
    """Flat positions, ascending, of the `n` largest positive entries (all, if fewer are positive); the first of ties
    win.

    No sort of the batch: positive float32 numbers are ordered as their bits are, so a histogram of the upper bits
    finds the bin of the n-th largest, and only that bin is searched further.
    """
    flat = pre.detach().flatten()
    codes = flat.float().view(torch.int32).clamp(min=0) >> 16
    at_least = torch.bincount(codes, minlength=2**15).flip(0).cumsum(0).flip(0)
    bin_ = max(0, int((at_least >= n).sum()) - 1)
    keep = codes > bin_
    missing = n - int(keep.sum())
    inside = ((codes == bin_) & (flat > 0)).nonzero().squeeze(1)
    if len(inside) > missing:
        values = flat[inside]
        cut = values.topk(missing, sorted=False).values.min()
        larger, ties = inside[values > cut], inside[values == cut]
        inside = torch.cat([larger, ties[: missing - len(larger)]])
    keep[inside] = True
    return keep.nonzero().squeeze(1)


class TopK(nn.Module):
    """latents = ReLU of the k largest pre-activations of each row, in training and at inference alike."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Float[Tensor, "batch d_sae"]) -> Latents:
        values, indices = pre.topk(self.k, dim=1, sorted=False)
        offsets = torch.arange(0, values.numel() + 1, self.k, device=pre.device)
        return Latents(indices.flatten(), values.flatten().relu(), offsets, pre.shape[1])

    def calibrate(self, pre: Float[Tensor, "batch d_sae"]) -> None:
        """Nothing here depends on the data."""

    def rescale(self, factor: float) -> None:
        """Top-k is homogeneous as it is."""


class BatchTopK(nn.Module):
    """The k·B largest positive pre-activations of the batch; at inference those above `threshold`.

    `threshold` follows the smallest selected value of each training step: a mean over the first steps, an exponential
    one after. It is float32 whatever autocast does (in bfloat16 such an average stalls) and moves in training steps
    only.
    """

    DECAY = 0.8  # about 5 steps: the cut of k·B values hardly has noise, and a longer memory lags behind training
    threshold: Tensor
    steps: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, pre: Float[Tensor, "batch d_sae"]) -> Latents:
        if not self.training:
            return from_mask(pre, (pre > self.threshold).flatten().nonzero().squeeze(1))
        latents = from_mask(pre, batch_topk_positions(pre, self.k * len(pre)))
        if torch.is_grad_enabled() and len(latents.values):
            self._track(latents.values.detach().min().float())
        return latents

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchTopK":
        threshold = self.threshold
        super()._apply(fn, recurse)
        self.threshold = threshold.to(self.threshold.device)  # `coder.bfloat16()` does not cast it
        return self

    def _track(self, smallest: Tensor) -> None:
        self.steps += 1
        weight = (1 / self.steps).clamp(min=1 - self.DECAY).float()
        self.threshold += weight * (smallest - self.threshold)

    def calibrate(self, pre: Float[Tensor, "batch d_sae"]) -> None:
        """Nothing: the threshold is tracked from the first training step on."""

    def rescale(self, factor: float) -> None:
        """Follow latents that are multiplied by `factor`."""
        self.threshold *= factor


class JumpReLU(nn.Module):
    """latents = pre · H(pre − θ), with a threshold θ = exp(log_threshold) of its own for each latent.

    H has no gradient: θ learns by the straight-through estimators of Rajamanoharan et al. (2024), a rectangle kernel of
    `bandwidth` around θ. Entries within half a bandwidth below θ therefore stay in the pattern, with value 0, in
    training.
    """

    def __init__(self, k: int, d_sae: int, bandwidth: float) -> None:
        super().__init__()
        self.k, self.bandwidth = k, bandwidth
        self.log_threshold = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre: Float[Tensor, "batch d_sae"]) -> Latents:
        threshold = self.log_threshold.exp()
        if not self.training:
            return from_mask(pre, (pre > threshold).flatten().nonzero().squeeze(1))
        reach = (pre > threshold - self.bandwidth / 2).flatten().nonzero().squeeze(1)
        latents = from_mask(pre, reach)
        values = _Jump.apply(latents.values, threshold[latents.indices], self.bandwidth)
        return latents._replace(values=values)

    def l0(self, pre: Float[Tensor, "batch d_sae"], latents: Latents) -> Float[Tensor, ""]:
        """Mean number of active latents a row, differentiable in the thresholds.

        `latents` are those of a training-mode `forward(pre)`: their pattern holds every entry that has a gradient.
        """
        entries = pre.detach().flatten().gather(0, latents.rows * latents.d_sae + latents.indices)
        steps = _Step.apply(entries, self.log_threshold.exp()[latents.indices], self.bandwidth)
        return steps.sum() / len(pre)

    @torch.no_grad()
    def calibrate(self, pre: Float[Tensor, "batch d_sae"]) -> None:
        """Start from the threshold that leaves k latents active a row on `pre`."""
        positions = batch_topk_positions(pre, self.k * len(pre))
        if len(positions):
            self.log_threshold.fill_(pre.flatten()[positions].min().log().item())

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Follow latents that are multiplied by `factor`."""
        self.log_threshold += math.log(factor)
        self.bandwidth *= factor


class _Jump(torch.autograd.Function):
    """z · H(z − θ); ∂/∂z as written, ∂/∂θ = −(θ/ε) · rect((z − θ)/ε)."""

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (z, threshold) = grad_outputs, ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return grad * (z > threshold), -threshold / ctx.bandwidth * near * grad, None


class _Step(torch.autograd.Function):
    """H(z − θ); ∂/∂θ = −(1/ε) · rect((z − θ)/ε), no gradient to z."""

    @staticmethod
    def forward(ctx, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        (grad,), (z, threshold) = grad_outputs, ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return None, -1 / ctx.bandwidth * near * grad, None


Activation = TopK | BatchTopK | JumpReLU


def build(name: ActivationName, k: int, d_sae: int, bandwidth: float) -> Activation:
    """The activation module called `name`."""
    match name:
        case "topk":
            return TopK(k)
        case "batchtopk":
            return BatchTopK(k)
        case "jumprelu":
            return JumpReLU(k, d_sae, bandwidth)
        case _:
            assert_never(name)
