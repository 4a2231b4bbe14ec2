"""Which entries are selected, exactly, without sorting them all.

topk: one program a row. (1) The row is read once into running maxima of groups: the entries g, g + GROUPS, … are group
g. (2) The k groups with the largest maxima hold the k largest entries; bisection over the bits of the codes finds the
k-th largest maximum. (3) The same bisection among the entries of these k groups.

batch_topk: groups again, of SPAN consecutive entries so that ties go by position. (1) One read of everything writes
their maxima. (2) The n largest maxima; (3) the n largest entries of their groups. Where most groups would be taken,
(3) is all. Both are a radix search, a launch a level: each program has a range of the codes, finds the digits of the
n-th largest so far in what all have counted, and counts the next digit of its own. After the last level each can tell
how many the others write before it, and writes its part, in one launch more. Programs add to the same whole numbers
only: the result has the same bits every time.
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
DIGIT_BITS = {2: 8, 4: 11}  # a level of the radix search: two levels for positive bfloat16, three for float32
BLOCK = 2048  # codes that a program holds at once: 16 for each of 128 threads
PROGRAMS = 512  # that share the codes: 4 for each of an H100's 132 multiprocessors
SPANS = 8, 64  # entries in a group: not beyond a cache line of bfloat16
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
    at = tl.ravel(groups[None, :] + GROUPS * tl.arange(0, ROUNDS)[:, None])  # ascending, as the groups are
    codes = tl.maximum(tl.load(bits + at, mask=at < d_sae, other=0).to(tl.int32), 0)
    keep = _keep_largest(tl.where(at < d_sae, codes, -1), k, BITS)
    tl.store(indices + tl.cumsum(keep.to(tl.int32)) - 1, at, mask=keep)


def topk(pre: Pre, k: int) -> Int[Tensor, "batch k"]:
    """The latents of the `k` largest positive entries of each row, ascending, the first of ties; where fewer are
    positive, the first others."""
    if pre.dtype == torch.float64:
        return reference.topk(pre, k).sort(dim=1).values
    batch, d_sae = pre.shape
    K = triton.next_power_of_2(k)
    groups = max(K, min(TOPK_MAX_GROUPS, triton.next_power_of_2(triton.cdiv(d_sae, TOPK_ROUNDS))))
    rounds = triton.next_power_of_2(triton.cdiv(d_sae, groups))
    warps = min(8, max(1, groups // 256))  # a row of few candidates is one warp's
    sizes = {"K": K, "GROUPS": groups, "ROUNDS": rounds, "BITS": 8 * pre.itemsize - 1, "num_warps": warps}
    indices = torch.empty(batch, k, dtype=torch.int64, device=pre.device)
    launch.run(_topk, (batch,), _bits(pre), indices, d_sae, k, **sizes)
    return indices


@triton.jit
@no_type_check
def _batch_topk_maxima(bits, maxima, totals, numel, SPAN: tl.constexpr, GROUPS: tl.constexpr, CLEAR: tl.constexpr):
    """The maximum of each group; and zeros for the searches to come, which count in `totals`."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    largest = tl.max(tl.load(bits + at, mask=at < numel, other=0), 1)
    tl.store(maxima + group, tl.maximum(largest, 0), mask=group * SPAN < numel)
    if tl.program_id(0) == 0:
        tl.store(totals + tl.arange(0, CLEAR), tl.zeros([CLEAR], tl.int32))


@triton.jit
@no_type_check
def _digits(totals, n, LEVELS: tl.constexpr, BINS: tl.constexpr):
    """The first digits of the n-th largest code, the last of these, and how many codes begin with larger ones."""
    prefix = n * 0
    digit = n * 0
    larger = n * 0
    for level in tl.static_range(LEVELS):
        total = tl.load(totals + level * BINS + tl.arange(0, BINS))
        beyond = larger + tl.sum(total) - tl.cumsum(total)
        reached = beyond < n  # from the digit wanted on upwards
        digit = BINS - tl.sum(reached.to(tl.int32))
        larger = tl.max(tl.where(reached, beyond, 0))
        prefix = prefix * BINS + digit
    return prefix, digit, larger


@triton.jit
@no_type_check
def _codes(bits, groups, at, length, numel, SPAN: tl.constexpr):
    """Codes at places `at` of the chosen groups side by side, or of everything where there are no groups (SPAN 0), and
    their positions: 0 where not positive, -1 beyond the end."""
    position = at
    if SPAN > 0:
        position = tl.load(groups + at // SPAN, mask=at < length, other=0) * SPAN + at % SPAN
    code = tl.load(bits + position, mask=(at < length) & (position < numel), other=0).to(tl.int32)
    return tl.where(at < length, tl.maximum(code, 0), -1), position


@triton.jit
@no_type_check
def _batch_topk_level(
    bits, groups, totals, reaching, above, length, numel, n, blocks,
    SPAN: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, DIGIT_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count, of this program's codes that begin with the digits found so far, those that go on with each digit.
    `reaching`, a row for each program: with that digit or a larger one. `above`: of the digits before, larger ones."""
    BINS: tl.constexpr = 1 << DIGIT_BITS
    program = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, BINS)
    prefix, digit, _larger = _digits(totals, n, LEVEL, BINS)
    row = reaching + program * (BINS + 1)
    if LEVEL > 0:
        beyond = tl.load(row + digit + 1)
        if LEVEL > 1:
            beyond += tl.load(above + program)
        tl.debug_barrier()
        tl.store(above + program, beyond)
    histogram = tl.zeros([BINS], tl.int32)
    for block in range(program * blocks, (program + 1) * blocks):
        code, _position = _codes(bits, groups, block * BLOCK + tl.arange(0, BLOCK), length, numel, SPAN)
        code = code >> (DIGIT_BITS * (LEVELS - 1 - LEVEL))
        histogram += tl.histogram(code & (BINS - 1), BINS, mask=(code >> DIGIT_BITS) == prefix)
    tl.store(row + bins, tl.sum(histogram) - tl.cumsum(histogram) + histogram)
    tl.store(row + BINS, 0)
    tl.atomic_add(totals + LEVEL * BINS + bins, histogram, mask=histogram > 0, sem="relaxed")


@triton.jit
@no_type_check
def _batch_topk_write(
    bits, groups, totals, reaching, above, positions, length, numel, n, blocks,
    SPAN: tl.constexpr, LEVELS: tl.constexpr, DIGIT_BITS: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Positions of the codes above the cut and of the first at it, n together: each program's after the others'."""
    BINS: tl.constexpr = 1 << DIGIT_BITS
    program = tl.program_id(0).to(tl.int64)
    cut, digit, larger = _digits(totals, n, LEVELS, BINS)
    missing = n - larger
    other = tl.arange(0, PROGRAMS)
    row = reaching + other * (BINS + 1) + digit
    at_least = tl.load(row, mask=other < program, other=0)
    beyond = tl.load(row + 1, mask=other < program, other=0)
    ties_before = tl.sum(at_least - beyond)
    written = tl.sum(beyond + tl.load(above + other, mask=other < program, other=0)) + tl.minimum(ties_before, missing)
    for block in range(program * blocks, (program + 1) * blocks):
        code, position = _codes(bits, groups, block * BLOCK + tl.arange(0, BLOCK), length, numel, SPAN)
        ties = (code == cut).to(tl.int32)
        keep = (code > cut) | ((ties == 1) & (ties_before + tl.cumsum(ties) <= missing))
        tl.store(positions + written + tl.cumsum(keep.to(tl.int32)) - 1, position, mask=keep)
        written += tl.sum(keep.to(tl.int32))
        ties_before += tl.sum(ties)


def _search(
    bits: Int[Tensor, " numel"], groups: Int[Tensor, " groups"] | None, span: int, n: int, totals: Int[Tensor, " zeros"]
) -> Int[Tensor, " n"]:
    """Positions, ascending, of the `n` largest of `bits` in these groups of `span`, or in all; the first of ties."""
    numel, length = len(bits), len(bits) if groups is None else len(groups) * span
    blocks = triton.cdiv(length, BLOCK)
    programs = min(PROGRAMS, blocks)
    share = triton.cdiv(blocks, programs)
    digit_bits = DIGIT_BITS[bits.itemsize]
    levels = _levels(bits)
    reaching = torch.empty(programs, 2**digit_bits + 1, dtype=torch.int32, device=bits.device)
    above = torch.empty(programs, dtype=torch.int32, device=bits.device)
    positions = torch.empty(n, dtype=torch.int64, device=bits.device)
    counted = bits, bits if groups is None else groups, totals, reaching, above
    sizes = {"SPAN": 0 if groups is None else span, "LEVELS": levels, "DIGIT_BITS": digit_bits, "BLOCK": BLOCK}
    for level in range(levels):
        launch.run(_batch_topk_level, (programs,), *counted, length, numel, n, share, LEVEL=level, **sizes)
    launch.run(_batch_topk_write, (programs,), *counted, positions, length, numel, n, share, PROGRAMS=PROGRAMS, **sizes)
    return positions


def _levels(bits: Tensor) -> int:
    return triton.cdiv(8 * bits.itemsize - 1, DIGIT_BITS[bits.itemsize])


def batch_topk(pre: Pre, n: int) -> Int[Tensor, " n"]:
    """Flat positions, ascending, of the `n` largest positive entries; the first of ties win.

    Always `n` of them, so that no size depends on data: where fewer entries are positive, the first others fill up.
    """
    if pre.dtype == torch.float64:
        return reference.batch_topk(pre, n)
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=pre.device)
    bits = _bits(pre).view(-1)
    numel, counters = len(bits), _levels(bits) * 2 ** DIGIT_BITS[bits.itemsize]
    if numel <= SPANS[0] * n:  # of the groups nearly all would be taken
        return _search(bits, None, 0, n, torch.zeros(counters, dtype=torch.int32, device=pre.device))
    # as many maxima (numel / span) as entries of their groups (n · span)
    span = min(SPANS[1], max(SPANS[0], 2 ** round(math.log2(numel / n) / 2)))
    tile = {"SPAN": span, "GROUPS": TILE // span, "CLEAR": triton.next_power_of_2(2 * counters)}
    maxima = bits.new_empty(triton.cdiv(numel, span))
    totals = torch.empty(tile["CLEAR"], dtype=torch.int32, device=pre.device)
    launch.run(_batch_topk_maxima, (triton.cdiv(numel, TILE),), bits, maxima, totals, numel, **tile)
    groups = _search(maxima, None, 0, n, totals)
    return _search(bits, groups, span, n, totals[counters:])
