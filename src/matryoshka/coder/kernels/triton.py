"""The seven operations on a GPU, each near its memory traffic, and without a host sync: CUDA graphs can capture them.

topk: one program a row. (1) The row is read once into running maxima of groups: the entries g, g + GROUPS, … are group
g. (2) The k groups with the largest maxima hold the k largest entries; bisection over the bits of the codes finds the
k-th largest maximum. (3) The same bisection among the entries of these k groups.

batch_topk: groups again, of SPAN consecutive entries so that ties go by position. (1) One read of everything writes
their maxima. (2) The n largest maxima, (3) the codes of their groups, (4) the n largest of these. Both (2) and (4) are
a radix search: a histogram of five bits a level narrows down the n-th largest code; then counts for each block, their
prefix sums, and every block writes its part.

group: `torch.sort` of the narrowest integers, which is a radix sort.

dots: tiles of [entries, columns], accumulated over the columns.

bags: a program for each piece of at most PIECE entries of a bag, so that a long bag keeps nobody waiting. A bag's first
piece is written to the result, further ones to a spare buffer that a second kernel adds in order: no atomics, the same
bits every time. How many spare pieces there can be depends on the shapes only.

prefix_errors_, suffix_sums_: one read and one write of everything.

Sums are accumulated in float32; float64 is left to `reference`. Under TRITON_INTERPRET=1 the kernels run on CPU
tensors. They carry `no_type_check` because their annotations are Triton's: jaxtyping's import hook leaves them alone.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import reference

# 16 running maxima for each of 256 threads at d_sae = 65,536, and 16 candidates for each of the k entries
TOPK_ROUNDS = 16
TOPK_MAX_GROUPS = 8192  # 32 registers for each of 256 threads
DIGIT_BITS = 5  # a level of the radix search: three levels for the 15 bits of positive bfloat16, seven for float32
BLOCK = 2048  # codes that a program holds at once: 16 for each of 128 threads
PROGRAMS = 512  # histograms that one program sums up at once: 4 for each of an H100's 132 multiprocessors
TILE = 8192  # entries that a program reads to make maxima: 16 KB of bfloat16
DOTS_ENTRIES, DOTS_COLUMNS = 8, 256  # a warp reads a row's 256 bfloat16 in one instruction of 16 bytes a thread
PIECE = 64  # entries; a longer bag than this is shared by several programs
# four rows in flight; 2 warps of 16 bytes a thread span 512 bfloat16, so that a column's sum stays within a thread
BAG_ROWS, BAG_COLUMNS, BAG_WARPS = 4, 512, 2
ELEMENTS = 2048  # of each prefix in a program of prefix_errors_ and suffix_sums_: 16 for each of 128 threads


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` on the GPU of its first argument, which need not be the current one."""
    if 0 not in grid:
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **constants)


def _bits(pre: Tensor) -> Tensor:
    """Floats as signed integers: positive ones are ordered as before, the others are not positive."""
    return pre.detach().contiguous().view({2: torch.int16, 4: torch.int32}[pre.itemsize])


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _check_contiguous(x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError("what is overwritten must be contiguous")


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


def topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
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
    _launch(_topk, (batch,), _bits(pre), indices, d_sae, k, **sizes)
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
        _launch(_batch_topk_histogram, (programs,), codes, state, histograms, length, shift, **many)
        _launch(_batch_topk_digit, (1,), histograms, state, n, programs, **one)
    counts = torch.empty(2, blocks, dtype=torch.int64, device=codes.device)
    _launch(_batch_topk_count, (blocks,), codes, state, counts, length, BLOCK=BLOCK)
    positions = torch.empty(n, dtype=torch.int64, device=codes.device)
    _launch(_batch_topk_write, (blocks,), codes, state, counts.cumsum(1), positions, length, n, BLOCK=BLOCK)
    return positions


def batch_topk(pre: Float[Tensor, "batch d_sae"], n: int) -> Int[Tensor, " n"]:
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
    _launch(_batch_topk_maxima, (triton.cdiv(numel, TILE),), bits, maxima, numel, **tile)
    groups = _largest(maxima, min(n, len(maxima)))
    candidates = bits.new_empty(len(groups) * span)
    grid = (triton.cdiv(len(candidates), TILE),)
    _launch(_batch_topk_candidates, grid, bits, groups, candidates, numel, len(groups), **tile)
    chosen = _largest(candidates, n)
    return groups[chosen // span] * span + chosen % span


product = reference.product
nonzero = reference.nonzero  # the size of its result depends on the data: the host waits for it in any case


def group(keys: Int[Tensor, " entries"], n: int) -> tuple[Int[Tensor, " entries"], Int[Tensor, " n_plus_1"]]:
    """(order, offsets): `order[offsets[i]:offsets[i + 1]]` are the entries whose key is i < n, ascending."""
    # half the digits to sort by where keys fit into 16 bits
    dtype, lowest = (torch.int16, -(2**15)) if n <= 2**16 else (torch.int32, 0)
    ordered, order = (keys + lowest).to(dtype).sort(stable=True)
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=keys.device)
    values = torch.arange(lowest, lowest + n, dtype=dtype, device=keys.device)
    torch.searchsorted(ordered, values, right=True, out=offsets[1:])
    return order, offsets


@triton.jit
@no_type_check
def _dots(a, b, i, j, out, entries, d, a_stride, b_stride, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    mask = entry < entries
    a_row = a + tl.load(i + entry, mask=mask, other=0).to(tl.int64)[:, None] * a_stride
    b_row = b + tl.load(j + entry, mask=mask, other=0).to(tl.int64)[:, None] * b_stride
    total = tl.zeros([ENTRIES, COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = mask[:, None] & (column < d)
        left = tl.load(a_row + column, mask=inside, other=0).to(tl.float32)
        total += left * tl.load(b_row + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + entry, tl.sum(total, 1), mask=mask)


def dots(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], i: Int[Tensor, " entries"], j: Int[Tensor, " entries"]
) -> Float[Tensor, " entries"]:
    """⟨a[i], b[j]⟩ of each entry, in float32. Neighbours that share a row read it from the cache: order them by the
    table that does not fit there."""
    if torch.float64 in (a.dtype, b.dtype):
        return reference.dots(a, b, i, j)
    a, b = _with_contiguous_rows(a), _with_contiguous_rows(b)
    out = torch.empty(len(i), dtype=torch.float32, device=a.device)
    grid = (triton.cdiv(len(i), DOTS_ENTRIES),)
    strides = a.stride(0), b.stride(0)
    sizes = {"ENTRIES": DOTS_ENTRIES, "COLUMNS": DOTS_COLUMNS}
    _launch(_dots, grid, a, b, i.contiguous(), j.contiguous(), out, len(i), a.shape[1], *strides, **sizes)
    return out


@triton.jit
@no_type_check
def _bags(
    table, rows, weights, offsets, spare_bags, spare_ends, out, spare, bags, d, stride,
    PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs 0 … bags − 1 sum the first piece of a bag, the others a spare piece each."""
    program = tl.program_id(0).to(tl.int64)
    if program < bags:
        bag = program
        piece = program * 0
        target = out + bag * d
    else:
        slot = program - bags
        bag = tl.load(spare_bags + slot)
        if bag == bags:  # fewer spare pieces than there could be
            return
        piece = 1 + slot - tl.load(spare_ends + bag - 1, mask=bag > 0, other=0)
        target = spare + slot * d
    begin = tl.load(offsets + bag) + piece * PIECE
    end = tl.minimum(begin + PIECE, tl.load(offsets + bag + 1))
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(begin, end, ROWS):
        entry = start + tl.arange(0, ROWS)
        row = tl.load(rows + entry, mask=entry < end, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=entry < end, other=0).to(tl.float32)
        inside = (entry < end)[:, None] & (column < d)[None, :]
        values = tl.load(table + row[:, None] * stride + column[None, :], mask=inside, other=0)
        total += tl.sum(weight[:, None] * values.to(tl.float32), 0)
    tl.store(target + column, total, mask=column < d)


@triton.jit
@no_type_check
def _bags_add_spare(spare_bags, spare_ends, out, spare, bags, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The program of a bag's first spare piece adds them all to the bag."""
    first = tl.program_id(0).to(tl.int64)
    bag = tl.load(spare_bags + first)
    if bag == bags:
        return
    if first != tl.load(spare_ends + bag - 1, mask=bag > 0, other=0):
        return
    last = tl.load(spare_ends + bag)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.load(out + bag * d + column, mask=column < d, other=0)
    for start in range(first, last, ROWS):
        slot = start + tl.arange(0, ROWS)
        inside = (slot < last)[:, None] & (column < d)[None, :]
        total += tl.sum(tl.load(spare + slot[:, None] * d + column[None, :], mask=inside, other=0), 0)
    tl.store(out + bag * d + column, total, mask=column < d)


def bags(
    table: Float[Tensor, "n d"],
    rows: Int[Tensor, " entries"],
    weights: Float[Tensor, " entries"],
    offsets: Int[Tensor, " bags_plus_1"],
) -> Float[Tensor, "bags d"]:
    """Σ weights · table[rows] over the entries `offsets[i]:offsets[i + 1]` of each bag i, in float32."""
    if table.dtype == torch.float64:
        return reference.bags(table, rows, weights, offsets)
    table = _with_contiguous_rows(table)
    count, d = len(offsets) - 1, table.shape[1]
    spares = len(rows) // PIECE  # a bag has (length − 1) // PIECE pieces beyond its first
    spare_ends = ((offsets.diff() - 1).clamp(min=0) // PIECE).cumsum(0)
    spare_bags = torch.searchsorted(spare_ends, torch.arange(spares, device=rows.device), right=True)
    out = torch.empty(count, d, dtype=torch.float32, device=table.device)
    spare = out.new_empty(spares, d)
    columns = triton.cdiv(d, BAG_COLUMNS)
    sizes = {"ROWS": BAG_ROWS, "COLUMNS": BAG_COLUMNS, "num_warps": BAG_WARPS}
    shared = spare_bags, spare_ends, out, spare, count, d
    entries = table, rows.contiguous(), weights.contiguous(), offsets.contiguous()
    _launch(_bags, (count + spares, columns), *entries, *shared, table.stride(0), PIECE=PIECE, **sizes)
    _launch(_bags_add_spare, (spares, columns), *shared, **sizes)
    return out


@triton.jit
@no_type_check
def _prefix_errors(rings, target, sums, numel, M: tl.constexpr, ELEMENTS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    at = program * ELEMENTS + tl.arange(0, ELEMENTS)
    mask = at < numel
    error = -tl.load(target + at, mask=mask, other=0).to(tl.float32)
    for m in tl.static_range(M):
        error += tl.load(rings + at, mask=mask, other=0).to(tl.float32)
        tl.store(rings + at, error, mask=mask)
        tl.store(sums + m * tl.num_programs(0) + program, tl.sum(error * error))
        rings += numel


def prefix_errors_(
    rings: Float[Tensor, "prefix batch d"], target: Float[Tensor, "batch d"]
) -> Float[Tensor, " prefix"]:
    """Σ (ŷ − target)² of each prefix; `rings` (contiguous) become ŷ − target, ŷ their prefix sums."""
    if rings.dtype == torch.float64:
        return reference.prefix_errors_(rings, target)
    _check_contiguous(rings)
    grid = (triton.cdiv(target.numel(), ELEMENTS),)
    sums = torch.empty(len(rings), *grid, dtype=torch.float32, device=rings.device)
    sizes = {"M": len(rings), "ELEMENTS": ELEMENTS}
    _launch(_prefix_errors, grid, rings, target.contiguous(), sums, target.numel(), **sizes)
    return sums.sum(1, dtype=torch.float64).to(rings.dtype)


@triton.jit
@no_type_check
def _suffix_sums(errors, weights, numel, M: tl.constexpr, ELEMENTS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    mask = at < numel
    plane = tl.cast(numel, tl.int64)
    total = tl.zeros([ELEMENTS], tl.float32)
    for i in tl.static_range(M):
        m = M - 1 - i
        here = errors + m * plane + at
        total += tl.load(weights + m).to(tl.float32) * tl.load(here, mask=mask, other=0).to(tl.float32)
        tl.store(here, total, mask=mask)


def suffix_sums_(errors: Float[Tensor, "prefix batch d"], weights: Float[Tensor, " prefix"]) -> None:
    """`errors[r]` (contiguous) becomes Σ_{m ≥ r} weights[m] · errors[m]: what the latents of ring r learn from all
    prefixes that hold them."""
    if errors.dtype == torch.float64:
        return reference.suffix_sums_(errors, weights)
    _check_contiguous(errors)
    numel = errors[0].numel()
    sizes = {"M": len(errors), "ELEMENTS": ELEMENTS}
    _launch(_suffix_sums, (triton.cdiv(numel, ELEMENTS),), errors, weights.contiguous(), numel, **sizes)
