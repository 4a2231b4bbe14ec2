"""The operations on a CPU: exact selection in stages, inner products and sums without copies of rows.

Selection reads the pre-activations once, for the maxima of groups. The k largest entries lie in the k groups with the
largest maxima, so whatever comes after looks at those groups only. Positive floats are ordered as their bits are, so
all of it compares integers.

Sums and inner products are the two halves of `embedding_bag`. Entries that come latent by latent read each weight row
once from memory, and activations from the cache.
"""

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.kernels import (
    Entries,
    Inputs,
    Pre,
    Precision,
    Rings,
    Table,
    Taught,
    Transposed,
    Values,
    reference,
)

ROW_GROUP = 8
"""Entries in a group where each row selects for itself, in as many stages as its length allows."""
BATCH_GROUP_BITS = 4
BATCH_GROUP = 2**BATCH_GROUP_BITS
"""Entries in a group where the batch selects as a whole: larger, for it has no further stages."""
ROW_BLOCK = 512
"""Rows of weights worked on at once, so that they come from the cache the second time."""
DOT_LIMIT = 2**30
"""Numbers in one dot product: BLAS counts them in 32 bits."""
CODES = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as a float: positive ones are ordered alike."""


def product(inputs: Inputs, W: Float[Tensor, "d_in d_sae"], b: Float[Tensor, " d_sae"], precision: Precision) -> Pre:
    if precision != "bfloat16" or not has_bfloat16_product():
        return reference.product(inputs, W, b, precision)
    # oneDNN adds the biases while it writes; addmm first copies them to every row of the result
    low = torch.bfloat16
    rows = W.T.to(low).contiguous()
    return torch.ops.mkldnn._linear_pointwise(inputs.to(low), rows, b.to(low), "none", [], "")


@cache
def has_bfloat16_product() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this processor (x86: with AVX-512 or AMX, but not with AVX2)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_native_bfloat16() -> bool:
    """Whether it does so faster than it multiplies float32 ones (AVX-512 BF16, AMX)."""
    instructions = torch.cpu.get_capabilities()
    return has_bfloat16_product() and bool(instructions.get("avx512_bf16") or instructions.get("amx_bf16"))


def topk(pre: Pre, k: int) -> Int[Tensor, "batch k"]:
    """The latents of the `k` largest positive entries of each row, in any order; others where fewer are positive."""
    return _topk(_codes(pre), k)


def batch_topk(pre: Pre, n: int) -> Entries:
    if pre.numel() <= 2 * n:  # nearly all groups would have members among them
        codes = _codes(pre)
        positive = nonzero(codes > 0)
        return positive[_largest(codes.flatten()[positive], n)]
    grouped = _grouped(_codes(pre), BATCH_GROUP)
    maxima, groups = grouped.amax(1), grouped.shape[2]
    # at least n groups, so at least n entries, reach the bound: what lies below it is not among the n largest
    bound = _lower_bound(maxima, n)
    row, first = (torch.from_numpy(part) for part in np.divmod(np.flatnonzero((maxima >= bound).numpy()), groups))
    members = grouped.transpose(1, 2)[row, first]
    near = nonzero(members >= bound)
    group, place = near >> BATCH_GROUP_BITS, near & (BATCH_GROUP - 1)
    positions, order = (row[group] * pre.shape[1] + first[group] + place * groups).sort()
    return positions[_largest(members.flatten()[near][order], n)]


def nonzero(mask: Bool[Tensor, "batch d_sae"]) -> Entries:
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def group(keys: Entries, n: int) -> tuple[Entries, Int[Tensor, " n_plus_1"]]:
    order = _radix_argsort(keys.numpy(), n)
    counts = torch.bincount(keys, minlength=n)
    return torch.from_numpy(order), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


transpose = partial(reference.transpose, group=group)
locate, keep = reference.locate, reference.keep


def dots(a: Table, b: Float[Tensor, "m d"], i: Entries, j: Entries) -> Values:
    # embedding_bag's gradient to its per-sample weights is just this
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, b, j, i, i, 0)


exact = partial(reference.exact, dots=dots)


def bags(table: Table, rows: Entries, weights: Values, offsets: Int[Tensor, " bags_plus_1"]) -> Float[Tensor, "bags d"]:
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


encoder_gradients = partial(reference.encoder_gradients, bags=bags)


def prefix_errors(
    W_dec: Table, values: Values, indices: Entries, rows: Entries, offsets: Int[Tensor, " batch_plus_1"],
    target: Float[Tensor, "batch d"], bias: Float[Tensor, " d"] | None, widths: Int[Tensor, " prefix"],
) -> tuple[Float[Tensor, " prefix"], Rings]:  # fmt: skip
    """What is left are the errors of each prefix: they are added up when their weight is known, in the same pass."""
    order, offsets = group(reference.ring_of(indices, widths) * len(target) + rows, len(widths) * len(target))
    errors = bags(W_dec, indices[order], values[order], offsets).view(len(widths), *target.shape)
    errors[0].sub_(target if bias is None else target - bias)
    for below, above in pairwise(errors):
        above.add_(below)
    return torch.linalg.vector_norm(errors, dim=2).double().square_().sum(1).to(errors.dtype), errors


def prefix_gradients(
    left: Rings, scale: Float[Tensor, ""], W_dec: Table, values: Values, by: Transposed,
    widths: Int[Tensor, " prefix"], each_row: bool,
) -> tuple[Values, Table, Float[Tensor, "*rows d"]]:  # fmt: skip
    order, rows, indices, offsets = by
    weight = scale.item()
    left[-1].mul_(weight)
    for above, here in pairwise(reversed([*left])):
        torch.add(above, here, alpha=weight, out=here)
    planes, at = left.flatten(0, 1), reference.ring_of(indices, widths) * left.shape[1] + rows
    of_values = torch.empty_like(values).scatter_(0, order, dots(planes, W_dec, at, indices))
    added = left[0] if each_row else left[0].sum(0)
    return of_values, bags(planes, at, values[order], offsets), added


variance = reference.variance
follow_smallest_, count_silence_, tally_ = reference.follow_smallest_, reference.count_silence_, reference.tally_


def adam_(
    taught: Sequence[Taught], lr: float | Float[Tensor, ""], betas: tuple[float, float], largest_norm: float
) -> Float[Tensor, ""]:
    for one in taught:
        if one.unit_rows:
            project_rows_(one.gradient, one.parameter)
    norm = total_norm([one.gradient for one in taught])
    divisor = (norm / largest_norm).float()
    reference.fused_adam_(taught, lr, betas, divisor if divisor > 1 else None)
    for one in taught:
        if one.unit_rows:
            normalise_rows_(one.parameter)
    return norm


def total_norm(gradients: Sequence[Tensor], dot_limit: int = DOT_LIMIT) -> Float[Tensor, ""]:
    """√Σ g² of them all; by dot products of at most `dot_limit` numbers, which read memory twice as fast as norms
    do."""
    parts = [part for gradient in gradients for part in gradient.flatten().split(dot_limit)]
    return torch.stack([part.dot(part) for part in parts]).sum().sqrt()


def project_rows_(x: Table, rows: Table) -> None:
    every = torch.arange(ROW_BLOCK)
    for block, units in zip(x.split(ROW_BLOCK), rows.split(ROW_BLOCK), strict=True):
        i = every[: len(block)]
        block.addcmul_(dots(block, units, i, i)[:, None], units, value=-1)


def normalise_rows_(rows: Table) -> None:
    for block in rows.split(ROW_BLOCK):
        reference.normalise_rows_(block)


def _codes(pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "batch d_sae"]:
    return pre.contiguous().view(CODES[pre.itemsize])


def _grouped(codes: Int[Tensor, "batch n"], size: int) -> Int[Tensor, "batch size groups"]:
    """Codes in groups of `size`: group g holds the columns g, g + groups, g + 2 · groups …, so that one vector
    instruction compares many groups. A code smaller than all others fills up the last ones."""
    if missing := -codes.shape[1] % size:
        smallest = torch.iinfo(codes.dtype).min  # the code of -0.0 as well, which is raised: no filler is selected
        codes = F.pad(codes.clamp(min=smallest + 1), (0, missing), value=smallest)
    return codes.view(len(codes), size, -1)


def _topk(codes: Int[Tensor, "batch n"], k: int) -> Int[Tensor, "batch k"]:
    """Columns of the `k` largest codes of each row: they are in the k groups with the largest maxima, which are found
    in the same way."""
    if codes.shape[1] < 2 * ROW_GROUP * k:  # most groups would be candidates
        return codes.topk(k, dim=1, sorted=False).indices
    grouped = _grouped(codes, ROW_GROUP)
    groups = grouped.shape[2]
    candidates = (_topk(grouped.amax(1), k)[:, :, None] + torch.arange(0, ROW_GROUP * groups, groups)).flatten(1)
    best = grouped.flatten(1).gather(1, candidates).topk(k, dim=1, sorted=False).indices
    return candidates.gather(1, best)


def _lower_bound(codes: Int[Tensor, "batch groups"], n: int) -> int:
    """A positive code that at least `n` of `codes` reach (or all positive ones), and few more: by its upper 16 bits."""
    shift = codes.itemsize * 8 - 16
    at_least = torch.bincount((codes >> shift).clamp_(min=0).flatten().int(), minlength=2**15).flip(0).cumsum(0)
    reached = int((at_least < n).sum())  # so many of the largest bins hold fewer than n together
    return max(1, (2**15 - 1 - reached) << shift)


def _largest(codes: Int[Tensor, " entries"], n: int) -> Int[Tensor, " chosen"]:
    """Places, ascending, of the `n` largest; the first of ties."""
    if len(codes) <= n:
        return torch.arange(len(codes))
    numbers = codes.numpy()
    cut = np.partition(numbers, len(numbers) - n)[len(numbers) - n]
    chosen = numbers > cut
    ties = np.flatnonzero(numbers == cut)
    chosen[ties[: n - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(np.flatnonzero(chosen))


def _radix_argsort(keys: np.ndarray, n: int) -> np.ndarray:
    """Stable argsort of keys in 0 … n − 1: numpy sorts 16-bit numbers by radix, larger keys take two passes."""
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if n > 2**16:
        order = order[np.argsort((keys[order] >> 16).astype(np.uint16), kind="stable")]
    return order
