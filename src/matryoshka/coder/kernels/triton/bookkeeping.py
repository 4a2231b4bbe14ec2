"""What is counted after a step, in a launch or two each: no atomics, the same bits every time.

follow_smallest_: each program finds the smallest positive of SIZE values, one more the smallest of these.

count_silence_: a program for some latents reads their entries, ENTRIES of each at a time, until all have fired or have
no more. Nearly all have with the first, so that few entries are read.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Inputs, Transposed, Values, reference
from matryoshka.coder.kernels.triton import launch

SIZE = 4096  # values of a program: eight loads of 16 bytes in flight for each of 128 threads
LATENTS, ENTRIES = 32, 8  # two entries for each of 128 threads


@triton.jit
@no_type_check
def _smallest(values, smallest, count, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(values + at, mask=at < count, other=0).to(tl.float32)
    tl.store(smallest + tl.program_id(0), tl.min(tl.where(value > 0, value, float("inf"))))


@triton.jit
@no_type_check
def _follow_smallest(threshold, steps, smallest, count, decay, SIZE: tl.constexpr):
    best = tl.full([SIZE], float("inf"), tl.float32)
    for start in range(0, count, SIZE):
        at = start + tl.arange(0, SIZE)
        best = tl.minimum(best, tl.load(smallest + at, mask=at < count, other=float("inf")))
    least = tl.min(best)
    some = least < float("inf")
    step = tl.load(steps) + some.to(tl.int64)
    tl.store(steps, step)
    weight = tl.maximum(1.0 / tl.maximum(step, 1).to(tl.float32), 1 - decay)
    before = tl.load(threshold)
    tl.store(threshold, tl.where(some, before + weight * (least - before), before))


def follow_smallest_(
    threshold: Float[Tensor, ""], steps: Int[Tensor, ""], values: Float[Tensor, " some"], decay: float
) -> None:
    if values.dtype == torch.float64:
        return reference.follow_smallest_(threshold, steps, values, decay)
    smallest = torch.empty(triton.cdiv(len(values), SIZE), dtype=torch.float32, device=values.device)
    launch.run(_smallest, (len(smallest),), values.contiguous(), smallest, len(values), SIZE=SIZE)
    launch.run(_follow_smallest, (1,), threshold, steps, smallest, len(smallest), decay, SIZE=SIZE)


@triton.jit
@no_type_check
def _count_silence(silent, values, order, offsets, d_sae, batch, LATENTS: tl.constexpr, ENTRIES: tl.constexpr):
    latent = tl.program_id(0) * LATENTS + tl.arange(0, LATENTS)
    inside = latent < d_sae
    begin = tl.load(offsets + latent, mask=inside, other=0)
    end = tl.load(offsets + latent + 1, mask=inside, other=0)
    fired = tl.zeros([LATENTS], tl.int32)
    start = 0
    while tl.max(tl.where(fired == 0, end - begin, 0)) > start:
        entry = begin[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        place = tl.load(order + entry, mask=entry < end[:, None], other=0)
        value = tl.load(values + place, mask=entry < end[:, None], other=0)
        fired = tl.maximum(fired, tl.max((value > 0).to(tl.int32), 1))
        start += ENTRIES
    before = tl.load(silent + latent, mask=inside, other=0)
    tl.store(silent + latent, tl.where(fired == 0, before + batch, 0), mask=inside)


def count_silence_(silent: Int[Tensor, " d_sae"], values: Values, by: Transposed, batch: int) -> None:
    order, _, _, offsets = by
    parts = silent, values.contiguous(), order.contiguous(), offsets.contiguous()
    sizes = {"LATENTS": LATENTS, "ENTRIES": ENTRIES}
    launch.run(_count_silence, (triton.cdiv(len(silent), LATENTS),), *parts, len(silent), batch, **sizes)


@triton.jit
@no_type_check
def _tally(bad_step, step, of_x, sums, terms):
    everything = tl.load(of_x).to(tl.float64)
    for i in tl.static_range(len(terms)):
        term = tl.load(terms[i]).to(tl.float64)
        tl.store(sums[i], tl.load(sums[i]) + term)
        everything += term
    bad = everything - everything != 0  # of NaN and Inf alone
    before = tl.load(bad_step)
    tl.store(bad_step, tl.where(bad & (before < 0), tl.load(step), before))


def tally_(
    sums: Float[Tensor, " terms"],
    terms: Sequence[Float[Tensor, ""] | None],
    x: Inputs,
    bad_step: Int[Tensor, ""],
    step: int | Int[Tensor, ""],
) -> None:
    present = [(total, term) for total, term in zip(sums, terms, strict=True) if term is not None]
    step = step if isinstance(step, Tensor) else torch.full_like(bad_step, step)
    launch.run(_tally, (1,), bad_step, step, x.sum(), *map(tuple, zip(*present, strict=True)))
