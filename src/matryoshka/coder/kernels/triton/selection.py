"""Which entries are selected, exactly, without sorting them all.

topk: one program a row. (1) The row is read once into running maxima of groups: the entries g, g + GROUPS, … are group
g. (2) The k groups with the largest maxima hold the k largest entries; bisection over the bits of the codes finds the
k-th largest maximum. (3) The same bisection among the entries of these k groups.

batch_topk: groups again, of SPAN consecutive entries so that ties go by position. (1) One read of everything writes
their maxima. (2) The n largest maxima, (3) the codes of their groups, (4) the n largest of these. Both (2) and (4) are
a radix search: a histogram of five bits a level narrows down the n-th largest code; then counts for each block, their
prefix sums, and every block writes its part.
"""

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from matryoshka.coder.kernels import Pre, reference
from matryoshka.coder.kernels.triton import launch

# 16 running maxima for each of 256 threads at d_sae = 65,536, and 16 candidates for each of the k entries
TOPK_ROUNDS = 16
TOPK_MAX_GROUPS = 8192  # 32 registers for each of 256 threads
DIGIT_BITS = 5  # a level of the radix search: three levels for the 15 bits of positive bfloat16, seven for float32
BLOCK = 2048  # codes that a program holds at once: 16 for each of 128 threads
PROGRAMS = 512  # histograms that one program sums up at once: 4 for each of an H100's 132 multiprocessors
TILE = 8192  # entries that a program reads to make maxima: 16 KB of bfloat16


def _bits(pre: Tensor) -> Tensor:
    """Floats as signed integers: positive ones are ordered as before, the others are not positive."""
    return pre.detach().contiguous().view({2: torch.int16, 4: torch.int32}[pre.itemsize])


@triton.jit
@no_type_check
def _keep_largest(codes, k, BITS: tl.constexpr):
    """Which of `codes` are the k largest, the first of ties; at least k are not negative."""
    cut = k * 0
    step = cut + (1 << (BITS - 1))
    for _ in range(BITS):  # the largest cut that k codes reach, from its highest bit down
        enough = tl.sum((codes >= cut + step).to(tl.int32)) >= k
        cut = tl.where(enough, cut + step, cut)
        step = step >> 1
    above = (codes > cut).to(tl.int32)
    ties = (codes == cut).to(tl.int32)
    missing = k - tl.sum(above)
    return (above == 1) | ((ties == 1) & (tl.cumsum(ties) <= missing))


@triton.jit
@no_type_check
def _topk(bits, indices, d_sae, k, K: tl.constexpr, GROUPS: tl.constexpr, ROUNDS: tl.constexpr, BITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    bits += row * d_sae
    indices += row * k
    group = tl.arange(0, GROUPS)
    # 0 is what is not positive, and groups without entries, which come last; of 16 bits one instruction compares two
    best = tl.zeros([GROUPS], bits.dtype.element_ty)
    for start in tl.range(0, d_sae, GROUPS, loop_unroll_factor=4):  # four loads in flight
        best = tl.maximum(best, tl.load(bits + start + group, mask=start + group < d_sae, other=0))
    keep = _keep_largest(best.to(tl.int32), k, BITS)
    # the row of the result carries the k groups from the threads that found them to those that read them
    tl.store(indices + tl.cumsum(keep.to(tl.int32)) - 1, group, mask=keep)
    tl.debug_barrier()
    slot = tl.arange(0, K)
    groups = tl.load(indices + slot, mask=slot < k, other=d_sae)
    tl.debug_barrier()
    at = tl.ravel(groups[:, None] + GROUPS * tl.arange(0, ROUNDS)[None, :])
    codes = tl.maximum(tl.load(bits + at, mask=at < d_sae, other=0).to(tl.int32), 0)
    keep = _keep_largest(tl.where(at < d_sae, codes, -1), k, BITS)
    tl.store(indices + tl.cumsum(keep.to(tl.int32)) - 1, at, mask=keep)


def topk(pre: Pre, k: int) -> Int[Tensor, "batch k"]:
    """The latents of the `k` largest positive entries of each row, in any order; any others where fewer are
    positive, all distinct."""
    if pre.dtype == torch.float64:
        return reference.topk(pre, k)
    batch, d_sae = pre.shape
    K = triton.next_power_of_2(k)
    groups = max(K, min(TOPK_MAX_GROUPS, triton.next_power_of_2(triton.cdiv(d_sae, TOPK_ROUNDS))))
    rounds = triton.next_power_of_2(triton.cdiv(d_sae, groups))
    sizes = {"K": K, "GROUPS": groups, "ROUNDS": rounds, "BITS": 8 * pre.itemsize - 1, "num_warps": 8}
    indices = torch.empty(batch, k, dtype=torch.int64, device=pre.device)
    launch.run(_topk, (batch,), _bits(pre), indices, d_sae, k, **sizes)
    return indices


@triton.jit
@no_type_check
def _batch_topk_maxima(bits, maxima, numel, SPAN: tl.constexpr, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    largest = tl.max(tl.load(bits + at, mask=at < numel, other=0), 1)
    tl.store(maxima + group, tl.maximum(largest, 0), mask=group * SPAN < numel)


@triton.jit
@no_type_check
def _batch_topk_candidates(bits, groups, candidates, numel, count, SPAN: tl.constexpr, GROUPS: tl.constexpr):
    slot = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    group = tl.load(groups + slot, mask=slot < count, other=numel)
    column = tl.arange(0, SPAN)[None, :]
    at = group[:, None] * SPAN + column
    codes = tl.maximum(tl.load(bits + at, mask=at < numel, other=0), 0)
    tl.store(candidates + slot[:, None] * SPAN + column, codes, mask=(slot < count)[:, None])


@triton.jit
@no_type_check
def _batch_topk_histogram(codes, state, counts, length, shift, DIGIT_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Of the codes that begin with the digits found so far, how many go on with each digit: a row for each program."""
    BINS: tl.constexpr = 1 << DIGIT_BITS
    program = tl.program_id(0).to(tl.int64)
    prefix = tl.load(state)
    histogram = tl.zeros([BINS], tl.int32)
    for start in range(program * BLOCK, length, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        code = tl.load(codes + at, mask=at < length, other=-1).to(tl.int32) >> shift
        histogram += tl.histogram(code & (BINS - 1), BINS, mask=(code >> DIGIT_BITS) == prefix)
    tl.store(counts + program * BINS + tl.arange(0, BINS), histogram)


@triton.jit
@no_type_check
def _batch_topk_digit(counts, state, n, programs, DIGIT_BITS: tl.constexpr, PROGRAMS: tl.constexpr):
    """The next digit of the n-th largest code. `state`: its digits so far, how many codes begin with larger ones."""
    BINS: tl.constexpr = 1 << DIGIT_BITS
    program = tl.arange(0, PROGRAMS)[:, None]
    count = tl.load(counts + program * BINS + tl.arange(0, BINS)[None, :], mask=program < programs, other=0)
    total = tl.sum(count.to(tl.int64), 0)
    larger = tl.load(state + 1) + tl.sum(total) - tl.cumsum(total)
    reached = larger < n  # from the digit wanted on upwards
    digit = BINS - tl.sum(reached.to(tl.int64))
    tl.store(state, tl.load(state) * BINS + digit)
    tl.store(state + 1, tl.max(tl.where(reached, larger, 0)))


@triton.jit
@no_type_check
def _batch_topk_count(codes, state, counts, length, BLOCK: tl.constexpr):
    """How many codes of each block are above the cut (first row), and at it (second)."""
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + at, mask=at < length, other=-1)
    cut = tl.load(state)
    tl.store(counts + block, tl.sum((code > cut).to(tl.int32)))
    tl.store(counts + tl.num_programs(0) + block, tl.sum((code == cut).to(tl.int32)))


@triton.jit
@no_type_check
def _batch_topk_write(codes, state, ends, positions, length, n, BLOCK: tl.constexpr):
    """`ends` are the prefix sums of the counts; the first n − state[1] of the codes at the cut are taken."""
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + at, mask=at < length, other=-1)
    cut = tl.load(state)
    missing = n - tl.load(state + 1)
    above_before = tl.load(ends + block - 1, mask=block > 0, other=0)
    ties_before = tl.load(ends + tl.num_programs(0) + block - 1, mask=block > 0, other=0)
    ties = (code == cut).to(tl.int32)
    keep = (code > cut) | ((ties == 1) & (ties_before + tl.cumsum(ties) <= missing))
    first = above_before + tl.minimum(ties_before, missing)
    tl.store(positions + first + tl.cumsum(keep.to(tl.int32)) - 1, at, mask=keep)


def _largest(codes: Int[Tensor, " length"], n: int) -> Int[Tensor, " n"]:
    """Positions, ascending, of the `n` largest of `codes` (not negative); the first of ties win."""
    length, blocks = len(codes), triton.cdiv(len(codes), BLOCK)
    programs = min(PROGRAMS, blocks)
    state = torch.zeros(2, dtype=torch.int64, device=codes.device)
    histograms = torch.empty(programs, 1 << DIGIT_BITS, dtype=torch.int32, device=codes.device)
    levels = triton.cdiv(8 * codes.itemsize - 1, DIGIT_BITS)
    many = {"DIGIT_BITS": DIGIT_BITS, "BLOCK": BLOCK}
    one = {"DIGIT_BITS": DIGIT_BITS, "PROGRAMS": PROGRAMS, "num_warps": 16}
    for shift in reversed(range(0, levels * DIGIT_BITS, DIGIT_BITS)):
        launch.run(_batch_topk_histogram, (programs,), codes, state, histograms, length, shift, **many)
        launch.run(_batch_topk_digit, (1,), histograms, state, n, programs, **one)
    counts = torch.empty(2, blocks, dtype=torch.int64, device=codes.device)
    launch.run(_batch_topk_count, (blocks,), codes, state, counts, length, BLOCK=BLOCK)
    positions = torch.empty(n, dtype=torch.int64, device=codes.device)
    launch.run(_batch_topk_write, (blocks,), codes, state, counts.cumsum(1), positions, length, n, BLOCK=BLOCK)
    return positions


def batch_topk(pre: Pre, n: int) -> Int[Tensor, " n"]:
    """Flat positions, ascending, of the `n` largest positive entries; the first of ties win.

    Always `n` of them, so that no size depends on data: where fewer entries are positive, the first others fill up.
    """
    if pre.dtype == torch.float64:
        return reference.batch_topk(pre, n)
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=pre.device)
    bits = _bits(pre)
    numel = bits.numel()
    # as many maxima (numel / span) as candidates (n · span); not beyond a cache line of bfloat16
    span = min(64, max(8, triton.next_power_of_2(math.isqrt(numel // n))))
    tile = {"SPAN": span, "GROUPS": TILE // span}
    maxima = bits.new_empty(triton.cdiv(numel, span))
    launch.run(_batch_topk_maxima, (triton.cdiv(numel, TILE),), bits, maxima, numel, **tile)
    groups = _largest(maxima, min(n, len(maxima)))
    candidates = bits.new_empty(len(groups) * span)
    grid = (triton.cdiv(len(candidates), TILE),)
    launch.run(_batch_topk_candidates, grid, bits, groups, candidates, numel, len(groups), **tile)
    chosen = _largest(candidates, n)
    return groups[chosen // span] * span + chosen % span
