"""Inner products and sums of weighted rows.

dots: tiles of [entries, columns], accumulated over the columns.

bags: a program for each piece of at most PIECE entries of a bag, so that a long bag keeps nobody waiting. A border lies
after every PIECE entries, whatever bags they are of; where a bag goes on behind it, a piece begins. A bag's first piece
is written to the result, further ones to a spare buffer, a slot for each border, that a second kernel adds in order: no
atomics, the same bits every time, and no size that depends on data.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Inputs, Table, Transposed, Values, reference
from matryoshka.coder.kernels.triton import launch

DOTS_ENTRIES, DOTS_COLUMNS = 8, 256  # a warp reads a row's 256 bfloat16 in one instruction of 16 bytes a thread
PIECE = 64  # entries; a longer bag than this is shared by several programs
# four rows in flight; 2 warps of 16 bytes a thread span 512 bfloat16, so that a column's sum stays within a thread
BAG_ROWS, BAG_COLUMNS, BAG_WARPS = 4, 512, 2


@triton.jit
@no_type_check
def _dots(
    a, b, i, j, biases, order, out, entries, d, a_stride, b_stride,
    EXACT: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """EXACT: with the bias of each `j`, and written where `order` says."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    mask = entry < entries
    a_row = a + tl.load(i + entry, mask=mask, other=0).to(tl.int64)[:, None] * a_stride
    column_of = tl.load(j + entry, mask=mask, other=0).to(tl.int64)
    b_row = b + column_of[:, None] * b_stride
    total = tl.zeros([ENTRIES, COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = mask[:, None] & (column < d)
        left = tl.load(a_row + column, mask=inside, other=0).to(tl.float32)
        total += left * tl.load(b_row + column, mask=inside, other=0).to(tl.float32)
    value = tl.sum(total, 1)
    if EXACT:
        value += tl.load(biases + column_of, mask=mask, other=0).to(tl.float32)
        entry = tl.load(order + entry, mask=mask, other=0)
    tl.store(out + entry, value, mask=mask)


def dots(a: Table, b: Float[Tensor, "m d"], i: Entries, j: Entries) -> Values:
    """Neighbours that share a row read it from the cache: order entries by the table that does not fit there."""
    if torch.float64 in (a.dtype, b.dtype):
        return reference.dots(a, b, i, j)
    return _dotted(a, b, i.contiguous(), j.contiguous())


def exact(inputs: Inputs, rows: Table, biases: Float[Tensor, " d_sae"], by: Transposed) -> Values:
    if torch.float64 in (inputs.dtype, rows.dtype):
        return reference.exact(inputs, rows, biases, by)
    order, of_rows, indices, _ = by
    return _dotted(inputs, rows, of_rows.contiguous(), indices.contiguous(), biases.contiguous(), order.contiguous())


def _dotted(
    a: Table,
    b: Float[Tensor, "m d"],
    i: Entries,
    j: Entries,
    biases: Float[Tensor, " m"] | None = None,
    order: Entries | None = None,
) -> Values:
    a, b = with_contiguous_rows(a), with_contiguous_rows(b)
    out = torch.empty(len(i), dtype=torch.float32, device=a.device)
    sizes = {"EXACT": order is not None, "ENTRIES": DOTS_ENTRIES, "COLUMNS": DOTS_COLUMNS}
    parts = a, b, i, j, biases, order, out, len(i), a.shape[1], a.stride(0), b.stride(0)
    launch.run(_dots, (triton.cdiv(len(i), DOTS_ENTRIES),), *parts, **sizes)
    return out


@triton.jit
@no_type_check
def _bag_at(offsets, bags, entry):
    """The bag that holds an entry."""
    low = entry * 0
    high = low + bags
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(offsets + middle) <= entry
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
@no_type_check
def _piece_of(program, offsets, out, spare, bags, d, PIECE: tl.constexpr):
    """(bag, first entry, end, where its sum is to be written) of a program's piece. Programs 0 … bags − 1 have the
    first piece of each bag, the others whatever of a bag begins before a border and goes on behind it: bag −1 if none
    does."""
    if program < bags:
        bag = program
        begin = tl.load(offsets + bag)
        target = out + bag * d
    else:
        slot = program - bags
        begin = (slot + 1) * PIECE
        bag = _bag_at(offsets, bags, begin)
        if tl.load(offsets + bag) == begin:
            bag = slot * 0 - 1
        target = spare + slot * d
    border = (begin // PIECE + 1) * PIECE
    end = tl.minimum(border, tl.load(offsets + bag + 1, mask=bag >= 0, other=0))
    return bag, begin, end, target


def spare_pieces(entries: int) -> int:
    """How many borders of pieces lie within so many entries."""
    return max(0, entries - 1) // PIECE


@triton.jit
@no_type_check
def _bags(
    table, rows, weights, order, offsets, out, totals, spare, bags, d, stride,
    GRADIENT: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """GRADIENT: the weights are where `order` says, and `totals` become their sums, of the bags and then of what is
    spare."""
    bag, begin, end, target = _piece_of(tl.program_id(0).to(tl.int64), offsets, out, spare, bags, d, PIECE)
    if bag < 0:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    of_weights = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, ROWS):
        entry = start + tl.arange(0, ROWS)
        row = tl.load(rows + entry, mask=entry < end, other=0).to(tl.int64)
        place = entry
        if GRADIENT:
            place = tl.load(order + entry, mask=entry < end, other=0)
        weight = tl.load(weights + place, mask=entry < end, other=0).to(tl.float32)
        of_weights += weight
        inside = (entry < end)[:, None] & (column < d)[None, :]
        values = tl.load(table + row[:, None] * stride + column[None, :], mask=inside, other=0)
        total += tl.sum(weight[:, None] * values.to(tl.float32), 0)
    tl.store(target + column, total, mask=column < d)
    if GRADIENT:
        tl.store(totals + tl.program_id(0), tl.sum(of_weights), mask=tl.program_id(1) == 0)


@triton.jit
@no_type_check
def _add_spare(
    offsets, out, totals, spare, bags, d,
    GRADIENT: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The program of a bag's first spare piece adds them all to the bag."""
    first = tl.program_id(0).to(tl.int64)
    bag = _bag_at(offsets, bags, (first + 1) * PIECE)
    if first != tl.load(offsets + bag) // PIECE:  # also where the bag begins at the border
        return
    last = (tl.load(offsets + bag + 1) - 1) // PIECE
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.load(out + bag * d + column, mask=column < d, other=0)
    of_weights = tl.zeros([ROWS], tl.float32)
    for start in range(first, last, ROWS):
        slot = start + tl.arange(0, ROWS)
        inside = (slot < last)[:, None] & (column < d)[None, :]
        total += tl.sum(tl.load(spare + slot[:, None] * d + column[None, :], mask=inside, other=0), 0)
        if GRADIENT:
            of_weights += tl.load(totals + bags + slot, mask=slot < last, other=0)
    tl.store(out + bag * d + column, total, mask=column < d)
    if GRADIENT:
        one = tl.program_id(1) == 0
        tl.store(totals + bag, tl.load(totals + bag, mask=one, other=0) + tl.sum(of_weights), mask=one)


def add_spare(
    offsets: Int[Tensor, " bags_plus_1"],
    out: Table,
    spare: Float[Tensor, "spares d"],
    totals: Float[Tensor, " bags_and_spares"] | None = None,
) -> None:
    """Add to each bag of `out`, and of `totals`, its pieces in `spare`."""
    (bags, d), sizes = out.shape, {"ROWS": BAG_ROWS, "COLUMNS": BAG_COLUMNS, "num_warps": BAG_WARPS}
    sizes |= {"GRADIENT": totals is not None, "PIECE": PIECE}
    launch.run(_add_spare, (len(spare), triton.cdiv(d, BAG_COLUMNS)), offsets, out, totals, spare, bags, d, **sizes)


def bags(table: Table, rows: Entries, weights: Values, offsets: Int[Tensor, " bags_plus_1"]) -> Float[Tensor, "bags d"]:
    if table.dtype == torch.float64:
        return reference.bags(table, rows, weights, offsets)
    return _summed(table, rows, weights, None, offsets)[0]


def encoder_gradients(
    inputs: Inputs, gradient: Values, by: Transposed
) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"]]:
    if inputs.dtype == torch.float64:
        return reference.encoder_gradients(inputs, gradient, by)
    order, rows, _, offsets = by
    return _summed(inputs, rows, gradient, order.contiguous(), offsets)


def _summed(
    table: Table, rows: Entries, weights: Values, order: Entries | None, offsets: Int[Tensor, " bags_plus_1"]
) -> tuple[Float[Tensor, "bags d"], Float[Tensor, " bags"]]:
    """Sums of the weighted rows of each bag, and of its weights: where these have no `order`, just memory."""
    table, offsets = with_contiguous_rows(table), offsets.contiguous()
    count, d, spares = len(offsets) - 1, table.shape[1], spare_pieces(len(rows))
    out = torch.empty(count, d, dtype=torch.float32, device=table.device)
    spare = out.new_empty(spares, d)
    totals = out.new_empty(count + spares)
    sizes = {"PIECE": PIECE, "ROWS": BAG_ROWS, "COLUMNS": BAG_COLUMNS, "num_warps": BAG_WARPS}
    entries = table, rows.contiguous(), weights.contiguous(), order, offsets
    parts = *entries, out, totals, spare, count, d, table.stride(0)
    grid = count + spares, triton.cdiv(d, BAG_COLUMNS)
    launch.run(_bags, grid, *parts, GRADIENT=order is not None, **sizes)
    add_spare(offsets, out, spare, None if order is None else totals)
    return out, totals[:count]


def with_contiguous_rows(x: Tensor) -> Tensor:
    """`x`, or a copy whose rows lie in memory one number after another."""
    return x if x.stride(1) == 1 else x.contiguous()
