"""The errors of nested prefixes, and what latents and decoder learn from them: each one pass over the gathered rows.

prefix_errors: a program for a row of the batch and a block of columns has the errors of all prefixes in registers. An
entry is added to every prefix that holds its latent, so entries may come in any order and each weight is read once.

prefix_gradients: a program for a piece of a latent's entries (see `sums`) and a block of columns. All entries of a
latent read one plane, and a block of columns of a plane stays in the cache, for the programs of a block start one after
another. An entry's gradient is a sum over the blocks.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Rings, Table, Transposed, Values, reference
from matryoshka.coder.kernels.triton import launch, sums

ROWS, COLUMNS, WARPS = 4, 512, 2  # as for bags: four rows in flight, 16 bytes a thread
ERRORS = 4096  # of all prefixes together in a program of prefix_errors: 64 for each of 64 threads


@triton.jit
@no_type_check
def _prefix_errors(
    W_dec, indices, values, offsets, target, widths, squares, left, d, stride, plane,
    M: tl.constexpr, PREFIXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    prefix = M - 1 - tl.arange(0, PREFIXES)[:, None]  # from the last one down, so that a cumulative sum is a suffix sum
    # the last one holds all latents; what is below the first is none, and is not written
    width = tl.load(widths + prefix, mask=(prefix >= 0) & (prefix < M - 1), other=2**62)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    error = tl.zeros([PREFIXES, COLUMNS], tl.float32)
    error -= tl.load(target + row * d + column, mask=column < d, other=0).to(tl.float32)
    begin = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for start in range(0, end - begin, ROWS):
        for i in tl.static_range(ROWS):
            entry = begin + start + i
            latent = tl.load(indices + entry, mask=entry < end, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=entry < end, other=0).to(tl.float32)
            inside = (column < d) & (entry + 0 * column < end)  # the interpreter spreads no single truth value
            weights = tl.load(W_dec + latent * stride + column, mask=inside, other=0).to(tl.float32)
            error += tl.where(latent < width, value, 0.0) * weights
    error = tl.where(prefix >= 0, error, 0.0)  # nobody needs to add up what is none
    block = row * tl.num_programs(1) + tl.program_id(1)
    blocks = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    tl.store(squares + prefix * blocks + block, tl.sum(error * error, 1)[:, None], mask=prefix >= 0)
    here = left + prefix.to(tl.int64) * plane + row * d + column
    tl.store(here, tl.cumsum(error, 0), mask=(prefix >= 0) & (column < d))


def prefix_errors(
    W_dec: Table, values: Values, indices: Entries, rows: Entries, offsets: Int[Tensor, " batch_plus_1"],
    target: Float[Tensor, "batch d"], widths: Int[Tensor, " prefix"],
) -> tuple[Float[Tensor, " prefix"], Rings]:  # fmt: skip
    if W_dec.dtype == torch.float64:
        return reference.prefix_errors(W_dec, values, indices, rows, offsets, target, widths)
    W_dec, target, (batch, d), M = sums.with_contiguous_rows(W_dec), target.contiguous(), target.shape, len(widths)
    prefixes = triton.next_power_of_2(M)
    columns = min(COLUMNS, max(ERRORS // prefixes, 1))
    grid = batch, triton.cdiv(d, columns)
    left = torch.empty(M, batch, d, dtype=torch.float32, device=W_dec.device)
    squares = left.new_empty(M, *grid)
    entries = indices.contiguous(), values.contiguous(), offsets.contiguous()
    sizes = {"M": M, "PREFIXES": prefixes, "ROWS": ROWS, "COLUMNS": columns, "num_warps": WARPS}
    strides = d, W_dec.stride(0), target.numel()
    launch.run(_prefix_errors, grid, W_dec, *entries, target, widths.contiguous(), squares, left, *strides, **sizes)
    return squares.sum((1, 2), dtype=torch.float64).to(W_dec.dtype), left


@triton.jit
@no_type_check
def _prefix_gradients(
    left, scale, W_dec, values, order, rows, offsets, widths, of_values, out, spare, bags, entries, d, stride, plane,
    M: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    latent, begin, end, target = sums.piece_of(tl.program_id(0).to(tl.int64), offsets, out, spare, bags, d, PIECE)
    if latent < 0:
        return
    for m in tl.static_range(M - 1):
        left += tl.where(latent >= tl.load(widths + m), plane, 0).to(tl.int64)  # to the plane of its ring
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    weights = tl.load(W_dec + latent * stride + column, mask=column < d, other=0).to(tl.float32)
    of_values += tl.program_id(1).to(tl.int64) * entries
    by = tl.load(scale).to(tl.float32)
    total = tl.zeros([1, COLUMNS], tl.float32)
    for start in range(begin, end, ROWS):
        entry = start + tl.arange(0, ROWS)
        row = tl.load(rows + entry, mask=entry < end, other=0).to(tl.int64)
        place = tl.load(order + entry, mask=entry < end, other=0)
        value = tl.load(values + place, mask=entry < end, other=0).to(tl.float32)
        inside = (entry < end)[:, None] & (column < d)
        errors = tl.load(left + row[:, None] * d + column, mask=inside, other=0)
        total += tl.sum(value[:, None] * errors, 0)[None, :]
        tl.store(of_values + place, by * tl.sum(errors * weights, 1), mask=entry < end)
    tl.store(target + column, by * total, mask=column < d)


def prefix_gradients(
    left: Rings, scale: Float[Tensor, ""], W_dec: Table, values: Values, by: Transposed, widths: Int[Tensor, " prefix"]
) -> tuple[Values, Table, Float[Tensor, "batch d"]]:
    if left.dtype == torch.float64:
        return reference.prefix_gradients(left, scale, W_dec, values, by, widths)
    launch.check_contiguous(left)
    W_dec, (order, rows, _, offsets), (d_sae, d) = sums.with_contiguous_rows(W_dec), by, W_dec.shape
    spares, columns = sums.spare_pieces(len(rows)), triton.cdiv(d, COLUMNS)
    out, spare = left.new_empty(d_sae, d), left.new_empty(spares, d)
    of_values = left.new_empty(columns, len(rows))
    entries = values.contiguous(), order.contiguous(), rows.contiguous(), offsets.contiguous(), widths.contiguous()
    sizes = {"PIECE": sums.PIECE, "ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": WARPS}
    shared = left, scale, W_dec, *entries, of_values, out, spare
    counts = d_sae, len(rows), d, W_dec.stride(0), left[0].numel()
    launch.run(_prefix_gradients, (d_sae + spares, columns), *shared, *counts, M=len(widths), **sizes)
    sums.add_spare(entries[3], out, spare)
    return of_values.sum(0), out, left[0] * -scale
