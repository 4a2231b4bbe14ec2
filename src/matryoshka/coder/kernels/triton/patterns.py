"""Where entries lie, row by row and latent by latent: each a launch or few, whatever a plain version would gather,
compare and search one after another.

Entries are put in order of their latents by `torch.sort` of the narrowest integers, which is a radix sort.

Programs have SIZE entries each; further ones SIZE rows or latents each, whose first entry they find by bisection.

keep: (1) A program looks at SIZE entries of the whole pattern, and copies those that are kept. (2) By latent, it counts
for each entry how many of its own before it are kept. (3) All write theirs after those of the programs before.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Kept, Located, Transposed, Values
from matryoshka.coder.kernels.triton import launch

SIZE = 1024
COMPARISONS = 8192  # of latents with the programs of all entries: 64 for each of 128 threads


@triton.jit
@no_type_check
def _below(numbers, key, count, BITS: tl.constexpr):
    """How many of `count` ascending numbers, fewer than 2^BITS, are below each key."""
    below = key * 0
    for bit in tl.static_range(BITS):
        probe = below + (1 << (BITS - 1 - bit))
        inside = probe <= count
        number = tl.load(numbers + probe - 1, mask=inside, other=0).to(tl.int64)
        below = tl.where(inside & (number < key), probe, below)
    return below


@triton.jit
@no_type_check
def _locate(positions, indices, rows, offsets, entries, batch, d_sae, SIZE: tl.constexpr, BITS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    programs = tl.cdiv(entries, SIZE)
    if program < programs:
        entry = program * SIZE + tl.arange(0, SIZE)
        position = tl.load(positions + entry, mask=entry < entries, other=0)
        row = position // d_sae
        tl.store(rows + entry, row, mask=entry < entries)
        tl.store(indices + entry, position - row * d_sae, mask=entry < entries)
    else:
        row = (program - programs) * SIZE + tl.arange(0, SIZE)
        tl.store(offsets + row, _below(positions, row * d_sae, entries, BITS), mask=row <= batch)


def locate(positions: Entries, batch: int, d_sae: int) -> Located:
    indices, rows, offsets = (positions.new_empty(n) for n in (len(positions), len(positions), batch + 1))
    parts = positions.contiguous(), indices, rows, offsets, len(positions), batch, d_sae
    launch.run(_locate, _grid(len(positions), batch), *parts, SIZE=SIZE, BITS=len(positions).bit_length())
    return indices, rows, offsets


@triton.jit
@no_type_check
def _transpose(
    ordered, order, rows, of_rows, of_latents, offsets, entries, n, LOWEST: tl.constexpr, SIZE: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    programs = tl.cdiv(entries, SIZE)
    if program < programs:
        entry = program * SIZE + tl.arange(0, SIZE)
        inside = entry < entries
        row = tl.load(rows + tl.load(order + entry, mask=inside, other=0), mask=inside, other=0)
        tl.store(of_rows + entry, row, mask=inside)
        tl.store(of_latents + entry, tl.load(ordered + entry, mask=inside, other=0).to(tl.int64) - LOWEST, mask=inside)
    else:
        latent = (program - programs) * SIZE + tl.arange(0, SIZE)
        tl.store(offsets + latent, _below(ordered, latent + LOWEST, entries, BITS), mask=latent <= n)


def transpose(indices: Entries, rows: Entries, n: int) -> Transposed:
    # half the digits to sort by where latents fit into 16 bits
    dtype, lowest = (torch.int16, -(2**15)) if n <= 2**16 else (torch.int32, 0)
    keys = torch.add(indices, lowest, out=torch.empty_like(indices, dtype=dtype))
    ordered, order = keys.sort(stable=True)
    of_rows, of_latents, offsets = torch.empty_like(rows), torch.empty_like(indices), indices.new_empty(n + 1)
    parts = ordered, order, rows.contiguous(), of_rows, of_latents, offsets, len(order), n
    sizes = {"LOWEST": lowest, "SIZE": SIZE, "BITS": len(order).bit_length()}
    launch.run(_transpose, _grid(len(order), n), *parts, **sizes)
    return order, of_rows, of_latents, offsets


def group(keys: Entries, n: int) -> tuple[Entries, Int[Tensor, " n_plus_1"]]:
    order, _, _, offsets = transpose(keys, keys, n)
    return order, offsets


@triton.jit
@no_type_check
def _keep(
    places, values, indices, rows, offsets, new, kept_values, kept_indices, kept_rows, kept_offsets,
    entries, kept, batch, SIZE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Also the new place of each entry, -1 where it is not kept."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.cdiv(entries, SIZE)
    if program < programs:
        begin = program * SIZE
        entry = begin + tl.arange(0, SIZE)
        tl.store(new + entry, tl.full([SIZE], -1, tl.int64), mask=entry < entries)
        tl.debug_barrier()
        at = _below(places, begin, kept, BITS) + tl.arange(0, SIZE)
        place = tl.load(places + at, mask=at < kept, other=0)
        here = (at < kept) & (place < begin + SIZE)
        tl.store(new + place, at, mask=here)
        tl.store(kept_indices + at, tl.load(indices + place, mask=here, other=0), mask=here)
        tl.store(kept_rows + at, tl.load(rows + place, mask=here, other=0), mask=here)
        tl.store(kept_values + at, tl.load(values + place, mask=here, other=0), mask=here)
    else:
        row = (program - programs) * SIZE + tl.arange(0, SIZE)
        first = tl.load(offsets + row, mask=row <= batch, other=0)
        tl.store(kept_offsets + row, _below(places, first, kept, BITS), mask=row <= batch)


@triton.jit
@no_type_check
def _count_kept(new, order, before, counts, entries, SIZE: tl.constexpr):
    """By latent: kept entries of each program, and of the same one before each entry."""
    entry = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    place = tl.load(order + entry, mask=entry < entries, other=0)
    keep = (tl.load(new + place, mask=entry < entries, other=-1) >= 0).to(tl.int32)
    tl.store(before + entry, tl.cumsum(keep) - keep, mask=entry < entries)
    tl.store(counts + tl.program_id(0), tl.sum(keep))


@triton.jit
@no_type_check
def _keep_by_latent(
    new, before, counts, order, rows, indices, offsets, kept_order, kept_rows, kept_indices, kept_offsets,
    entries, kept, d_sae, SIZE: tl.constexpr, LATENTS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    programs = tl.cdiv(entries, SIZE)
    other = tl.arange(0, PROGRAMS)
    count = tl.load(counts + other, mask=other < programs, other=0)
    if program < programs:
        entry = program.to(tl.int64) * SIZE + tl.arange(0, SIZE)
        inside = entry < entries
        at = tl.sum(tl.where(other < program, count, 0)) + tl.load(before + entry, mask=inside, other=0)
        place = tl.load(new + tl.load(order + entry, mask=inside, other=0), mask=inside, other=-1)
        tl.store(kept_order + at, place, mask=place >= 0)
        tl.store(kept_rows + at, tl.load(rows + entry, mask=inside, other=0), mask=place >= 0)
        tl.store(kept_indices + at, tl.load(indices + entry, mask=inside, other=0), mask=place >= 0)
    else:
        latent = (program - programs) * LATENTS + tl.arange(0, LATENTS)
        begin = tl.load(offsets + latent, mask=latent <= d_sae, other=0)
        earlier = other[None, :] < (begin // SIZE)[:, None]
        first = tl.sum(tl.where(earlier, count[None, :], 0), 1) + tl.load(before + begin, mask=begin < entries, other=0)
        tl.store(kept_offsets + latent, tl.where(begin < entries, first, kept), mask=latent <= d_sae)


def keep(places: Int[Tensor, " kept"], pattern: Located, values: Values, by: Transposed) -> Kept:
    parts, entries, kept, batch = [part.contiguous() for part in pattern], len(values), len(places), len(pattern[2]) - 1
    ours = torch.empty_like(places), torch.empty_like(places), torch.empty_like(parts[2])
    new, kept_values = places.new_empty(entries), values.new_empty(kept)
    whole, found = (places.contiguous(), values.contiguous(), *parts), (new, kept_values, *ours)
    sizes = {"SIZE": SIZE, "BITS": kept.bit_length()}
    launch.run(_keep, _grid(entries, batch), *whole, *found, entries, kept, batch, **sizes)
    return ours, kept_values, _kept_by_latent(new, kept, by)


def _kept_by_latent(new: Entries, kept: int, by: Transposed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of entries with these `new` places, so many of them kept."""
    parts, entries, d_sae = [part.contiguous() for part in by], len(new), len(by[3]) - 1
    programs = triton.cdiv(entries, SIZE)
    before, counts = (torch.empty(n, dtype=torch.int32, device=new.device) for n in (entries, programs))
    launch.run(_count_kept, (programs,), new, parts[0], before, counts, entries, SIZE=SIZE)
    theirs = new.new_empty(kept), new.new_empty(kept), new.new_empty(kept), torch.empty_like(by[3])
    counted = triton.next_power_of_2(max(programs, 1))
    latents = max(1, COMPARISONS // counted)
    grid, sizes = (programs + triton.cdiv(d_sae + 1, latents),), {"SIZE": SIZE, "LATENTS": latents, "PROGRAMS": counted}
    launch.run(_keep_by_latent, grid, new, before, counts, *parts, *theirs, entries, kept, d_sae, **sizes)
    return theirs


def _grid(entries: int, keys: int) -> tuple[int]:
    """Programs for entries, and for where the entries of each key begin and the last ones end."""
    return (triton.cdiv(entries, SIZE) + triton.cdiv(keys + 1, SIZE),)
