"""Inner products, sums of weighted rows, and the errors of prefixes.

dots: tiles of [entries, columns], accumulated over the columns.

bags: a program for each piece of at most PIECE entries of a bag, so that a long bag keeps nobody waiting. A bag's first
piece is written to the result, further ones to a spare buffer that a second kernel adds in order: no atomics, the same
bits every time. How many spare pieces there can be depends on the shapes only.

prefix_errors_, suffix_sums_: one read and one write of everything.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Rings, Table, Values, reference
from matryoshka.coder.kernels.triton import launch

DOTS_ENTRIES, DOTS_COLUMNS = 8, 256  # a warp reads a row's 256 bfloat16 in one instruction of 16 bytes a thread
PIECE = 64  # entries; a longer bag than this is shared by several programs
# four rows in flight; 2 warps of 16 bytes a thread span 512 bfloat16, so that a column's sum stays within a thread
BAG_ROWS, BAG_COLUMNS, BAG_WARPS = 4, 512, 2
ELEMENTS = 2048  # of each prefix in a program of prefix_errors_ and suffix_sums_: 16 for each of 128 threads


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


def dots(a: Table, b: Float[Tensor, "m d"], i: Entries, j: Entries) -> Values:
    """Neighbours that share a row read it from the cache: order entries by the table that does not fit there."""
    if torch.float64 in (a.dtype, b.dtype):
        return reference.dots(a, b, i, j)
    a, b = _with_contiguous_rows(a), _with_contiguous_rows(b)
    out = torch.empty(len(i), dtype=torch.float32, device=a.device)
    grid = (triton.cdiv(len(i), DOTS_ENTRIES),)
    strides = a.stride(0), b.stride(0)
    sizes = {"ENTRIES": DOTS_ENTRIES, "COLUMNS": DOTS_COLUMNS}
    launch.run(_dots, grid, a, b, i.contiguous(), j.contiguous(), out, len(i), a.shape[1], *strides, **sizes)
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


def bags(table: Table, rows: Entries, weights: Values, offsets: Int[Tensor, " bags_plus_1"]) -> Float[Tensor, "bags d"]:
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
    launch.run(_bags, (count + spares, columns), *entries, *shared, table.stride(0), PIECE=PIECE, **sizes)
    launch.run(_bags_add_spare, (spares, columns), *shared, **sizes)
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


def prefix_errors_(rings: Rings, target: Float[Tensor, "batch d"]) -> Float[Tensor, " prefix"]:
    if rings.dtype == torch.float64:
        return reference.prefix_errors_(rings, target)
    launch.check_contiguous(rings)
    target, grid = target.contiguous(), (triton.cdiv(target.numel(), ELEMENTS),)
    sums = torch.empty(len(rings), *grid, dtype=torch.float32, device=rings.device)
    launch.run(_prefix_errors, grid, rings, target, sums, target.numel(), M=len(rings), ELEMENTS=ELEMENTS)
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


def suffix_sums_(errors: Rings, weights: Float[Tensor, " prefix"]) -> None:
    if errors.dtype == torch.float64:
        return reference.suffix_sums_(errors, weights)
    launch.check_contiguous(errors)
    numel = errors[0].numel()
    grid = (triton.cdiv(numel, ELEMENTS),)
    launch.run(_suffix_sums, grid, errors, weights.contiguous(), numel, M=len(errors), ELEMENTS=ELEMENTS)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
