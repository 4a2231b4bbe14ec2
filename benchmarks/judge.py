"""One judge for all contenders of the race: plain torch on canonical weights, which knows nothing of our coder.

FVU = Σ‖x − x_hat‖² / Σ‖x − x̄‖², x̄ the mean of each dimension over all rows that are judged; products in float32, sums
in float64. Of each prefix of the dictionary, with the latents that the whole one has selected.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from harness import Size
from peers.canonical import Canonical, select_above
from torch import Tensor

Select = Callable[[Tensor], Tensor]
"""Pre-activations [rows, d_sae] → dense latents [rows, d_sae]."""


class Measured(NamedTuple):
    """A dictionary on some rows."""

    fvu: list[float]
    """of each prefix"""
    l0: float
    """active latents a row"""
    fired: Tensor
    """[d_sae], whether a latent was ever active"""


def variance(x: Tensor) -> float:
    """Σ‖x − x̄‖² of x [rows, d]."""
    x = x.double()
    return (x - x.mean(0)).square().sum().item()


@torch.no_grad()
def measure(canonical: Canonical, x: Tensor, widths: list[int], batch: int, select: Select) -> Measured:
    """x [rows, d], a batch at a time."""
    errors = torch.zeros(len(widths), dtype=torch.float64)
    active, fired = 0, torch.zeros(widths[-1], dtype=torch.bool)
    for rows in x.split(batch):
        latents = select(canonical.pre(rows))
        active += int((latents > 0).sum())
        fired |= (latents > 0).any(0)
        x_hat, begin = canonical.b_dec.expand_as(rows), 0
        for m, end in enumerate(widths):
            x_hat = torch.addmm(x_hat, latents[:, begin:end], canonical.W_dec[begin:end])
            errors[m] += (rows - x_hat).double().square().sum()
            begin = end
    return Measured((errors / variance(x)).tolist(), active / len(x), fired)


@torch.no_grad()
def fired_on(canonical: Canonical, batches: Iterable[Tensor], select: Select) -> Tensor:
    """Whether each latent [d_sae] was active on any of these rows."""
    fired = torch.zeros(len(canonical.b_enc), dtype=torch.bool)
    for rows in batches:
        fired |= (select(canonical.pre(rows)) > 0).any(0)
    return fired


def judge(
    canonical: Canonical, architecture: str, size: Size, held_out: Tensor, trained_on: Iterable[Tensor]
) -> dict[str, Any]:
    """What is said of a contender, by exact selection and by its own threshold, where it has one.

    Selected are batches of the training size; held-out rows beyond the last whole one are left out. `silent` is the
    share of the dictionary that was active neither on those nor on the batches `trained_on`. A contender that is not
    finite gets no numbers.
    """
    if not canonical.finite:
        return {"finite": False}

    def exactly(pre: Tensor) -> Tensor:
        return canonical.select(architecture, pre, size.k)

    x = held_out[: len(held_out) // size.batch * size.batch]
    exact = measure(canonical, x, size.widths, size.batch, exactly)
    fired = exact.fired | fired_on(canonical, trained_on, exactly)
    said = {"finite": True, "fvu": exact.fvu, "l0": exact.l0, "silent": 1 - fired.double().mean().item()}
    if (threshold := canonical.threshold) is not None:
        inference = measure(canonical, x, size.widths, size.batch, lambda pre: select_above(threshold, pre))
        said |= {
            "threshold": threshold.mean().item(),
            "fvu_by_threshold": inference.fvu,
            "l0_by_threshold": inference.l0,
        }
    return said
