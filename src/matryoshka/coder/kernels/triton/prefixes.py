"""The errors of nested prefixes, and what latents and decoder learn from them: each one pass over the gathered rows.

prefix_errors: a program for a row of the batch and a block of columns has the errors of all prefixes in registers. An
entry is added to every prefix that holds its latent, so entries may come in any order and each weight is read once.

prefix_gradients: a program for PIECE entries in a row, ordered by latent, whatever latents they are of, and a block of
columns; so all programs have the same to do. A latent's sum is written where its entries end or the piece does; as for
bags, what goes on from an earlier piece is spare. A block of columns of a plane stays in the cache, for the programs of
a block start one after another. An entry's own gradient is a sum over the blocks.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Rings, Table, Transposed, Values, reference
from matryoshka.coder.kernels.triton import launch, sums

ROWS, COLUMNS, WARPS = 4, 512, 2  # of prefix_errors, as for bags: four rows in flight, 16 bytes a thread
ERRORS = 4096  # of all prefixes together in a program of prefix_errors: 64 for each of 64 threads
# of prefix_gradients: two rows of two tables in flight, in one warp, which adds up products without waiting for others
PAIRS, PAIR_COLUMNS = 2, 512
ENTRIES = 1024  # in a program that looks up where they are
LATENTS = 16  # that a program sees whether they are empty


@triton.jit
@no_type_check
def _prefix_errors(
    W_dec, indices, values, offsets, target, bias, widths, squares, left, d, stride, plane,
    BIASED: tl.constexpr, M: tl.constexpr, PREFIXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    prefix = M - 1 - tl.arange(0, PREFIXES)[:, None]  # from the last one down, so that a cumulative sum is a suffix sum
    # the last one holds all latents; what is below the first is none, and is not written
    width = tl.load(widths + prefix, mask=(prefix >= 0) & (prefix < M - 1), other=2**62)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    error = tl.zeros([PREFIXES, COLUMNS], tl.float32)
    wanted = tl.load(target + row * d + column, mask=column < d, other=0).to(tl.float32)
    if BIASED:
        wanted -= tl.load(bias + column, mask=column < d, other=0).to(tl.float32)
    error -= wanted
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
    target: Float[Tensor, "batch d"], bias: Float[Tensor, " d"] | None, widths: Int[Tensor, " prefix"],
) -> tuple[Float[Tensor, " prefix"], Rings]:  # fmt: skip
    if W_dec.dtype == torch.float64:
        return reference.prefix_errors(W_dec, values, indices, rows, offsets, target, bias, widths)
    W_dec, target, (batch, d), M = sums.with_contiguous_rows(W_dec), target.contiguous(), target.shape, len(widths)
    prefixes = triton.next_power_of_2(M)
    columns = min(COLUMNS, max(ERRORS // prefixes, 1))
    grid = batch, triton.cdiv(d, columns)
    left = torch.empty(M, batch, d, dtype=torch.float32, device=W_dec.device)
    squares = left.new_empty(M, *grid)
    entries = indices.contiguous(), values.contiguous(), offsets.contiguous()
    sizes = {
        "BIASED": bias is not None,
        "M": M,
        "PREFIXES": prefixes,
        "ROWS": ROWS,
        "COLUMNS": columns,
        "num_warps": WARPS,
    }
    strides = d, W_dec.stride(0), target.numel()
    bias = None if bias is None else bias.contiguous()
    parts = *entries, target, bias, widths.contiguous(), squares, left, *strides
    launch.run(_prefix_errors, grid, W_dec, *parts, **sizes)
    return squares.sum((1, 2), dtype=torch.float64).to(W_dec.dtype), left


@triton.jit
@no_type_check
def _plane_rows(
    values, order, rows, indices, widths, at, sorted_values, entries, batch, M: tl.constexpr, SIZE: tl.constexpr
):
    """Of entries by latent: their row of all planes, and their value."""
    entry = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = entry < entries
    latent = tl.load(indices + entry, mask=inside, other=0)
    row = tl.load(rows + entry, mask=inside, other=0).to(tl.int64)
    for m in tl.static_range(M - 1):
        row += tl.where(latent >= tl.load(widths + m), batch, 0)
    tl.store(at + entry, row, mask=inside)
    value = tl.load(values + tl.load(order + entry, mask=inside, other=0), mask=inside, other=0)
    tl.store(sorted_values + entry, value.to(tl.float32), mask=inside)


@triton.jit
@no_type_check
def _prefix_gradients(
    left, scale, W_dec, at, values, order, indices, offsets, of_values, out, spare, entries, d_sae, d, stride,
    PIECE: tl.constexpr, PAIRS: tl.constexpr, LATENTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs have PIECE entries each; further ones LATENTS each, whose empty ones they set to zero."""
    piece = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    pieces = tl.cdiv(entries, PIECE)
    if piece >= pieces:
        latents = (piece - pieces) * LATENTS + tl.arange(0, LATENTS)
        begin = tl.load(offsets + latents, mask=latents < d_sae, other=0)
        empty = (begin == tl.load(offsets + latents + 1, mask=latents < d_sae, other=0)) & (latents < d_sae)
        here = out + latents[:, None] * d + column[None, :]
        tl.store(here, tl.zeros([LATENTS, COLUMNS], tl.float32), mask=empty[:, None] & (column < d)[None, :])
        return
    begin = piece * PIECE
    by = tl.load(scale).to(tl.float32)
    begun = tl.load(indices + begin - 1, mask=begin > 0, other=-1)  # if this latent goes on, the piece is a spare one
    of_values += tl.program_id(1).to(tl.int64) * entries
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, PIECE, PAIRS):
        first = begin + start
        behind = tl.load(indices + first + PAIRS, mask=first + PAIRS < tl.minimum(begin + PIECE, entries), other=-1)
        latents, places, factors, errors, weights = (), (), (), (), ()
        for i in tl.static_range(PAIRS):  # all loads before the first store, which they could not overtake
            inside = first + i < entries
            latents += (tl.load(indices + first + i, mask=inside, other=-1).to(tl.int64),)
            places += (tl.load(order + first + i, mask=inside, other=0),)
            factors += (by * tl.load(values + first + i, mask=inside, other=0),)
            row = tl.load(at + first + i, mask=inside, other=0)
            here = (column < d) & (latents[i] + 0 * column >= 0)  # the interpreter spreads no single truth value
            errors += (tl.load(left + row * d + column, mask=here, other=0),)
            weights += (tl.load(W_dec + latents[i] * stride + column, mask=here, other=0).to(tl.float32),)
        latents += (behind.to(tl.int64),)
        for i in tl.static_range(PAIRS):
            tl.store(of_values + places[i], by * tl.sum(errors[i] * weights[i]), mask=first + i < entries)
            total += factors[i] * errors[i]
            ends = tl.where(latents[i] != latents[i + 1], latents[i], -1) + 0 * column >= 0
            target = tl.where(latents[i] == begun, spare + (piece - 1) * d, out + latents[i] * d)
            tl.store(target + column, total, mask=(column < d) & ends)
            total = tl.where(ends, 0.0, total)


def prefix_gradients(
    left: Rings, scale: Float[Tensor, ""], W_dec: Table, values: Values, by: Transposed,
    widths: Int[Tensor, " prefix"], each_row: bool,
) -> tuple[Values, Table, Float[Tensor, "*rows d"]]:  # fmt: skip
    if left.dtype == torch.float64:
        return reference.prefix_gradients(left, scale, W_dec, values, by, widths, each_row)
    launch.check_contiguous(left)
    W_dec, (order, rows, indices, offsets) = sums.with_contiguous_rows(W_dec), (part.contiguous() for part in by)
    (M, batch, d), d_sae, entries = left.shape, len(W_dec), len(rows)
    at, sorted_values = torch.empty_like(rows), left.new_empty(entries)
    grid, parts = (triton.cdiv(entries, ENTRIES),), (values.contiguous(), order, rows, indices, widths.contiguous())
    launch.run(_plane_rows, grid, *parts, at, sorted_values, entries, batch, M=M, SIZE=ENTRIES)
    out, spare = left.new_empty(d_sae, d), left.new_empty(sums.spare_pieces(entries), d)
    grid = triton.cdiv(entries, sums.PIECE) + triton.cdiv(d_sae, LATENTS), triton.cdiv(d, PAIR_COLUMNS)
    of_values = left.new_empty(grid[1], entries)
    tables, parts = (left, scale, W_dec), (at, sorted_values, order, indices, offsets, of_values, out, spare)
    sizes = {"PIECE": sums.PIECE, "PAIRS": PAIRS, "LATENTS": LATENTS, "COLUMNS": PAIR_COLUMNS, "num_warps": 1}
    launch.run(_prefix_gradients, grid, *tables, *parts, entries, d_sae, d, W_dec.stride(0), **sizes)
    sums.add_spare(offsets, out, spare)
    added = left[0] if each_row else left[0].sum(0)
    return of_values.sum(0), out, added.mul_(scale)
