"""The operations on a CPU: exact selection in two stages, inner products and sums without copies of rows.

Selection reads the pre-activations once, for the maxima of groups of 16. The k largest entries lie in the k groups
with the largest maxima, so whatever comes after looks at those groups only. Positive floats are ordered as their bits
are, so all of it compares integers.

Sums and inner products are the two halves of `embedding_bag`. Entries that come latent by latent read each weight row
once from memory, and activations from the cache.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.kernels import reference

GROUP_BITS = 4
GROUP = 2**GROUP_BITS
CODES = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def product(
    inputs: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_in d_sae"], b: Float[Tensor, " d_sae"]
) -> Float[Tensor, "batch d_sae"]:
    """inputs W + b, the one dense product; of low precision under autocast."""
    low = torch.get_autocast_dtype("cpu")
    if not (torch.is_autocast_enabled("cpu") and low == torch.bfloat16 and torch.backends.mkldnn.is_available()):
        return reference.product(inputs, W, b)
    # oneDNN adds the biases while it writes; addmm first copies them to every row of the result
    rows = W.T.to(low).contiguous()
    return torch.ops.mkldnn._linear_pointwise(inputs.to(low), rows, b.to(low), "none", [], "")


def topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    """The latents of the `k` largest positive entries of each row, in any order; others where fewer are positive."""
    if pre.shape[1] < 2 * GROUP * k:  # most groups would be candidates
        return _codes(pre).topk(k, dim=1, sorted=False).indices
    grouped = _grouped(pre)
    groups = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = (groups[:, :, None] + torch.arange(0, grouped[0].numel(), grouped.shape[2])).flatten(1)
    best = grouped.flatten(1).gather(1, candidates).topk(k, dim=1, sorted=False).indices
    return candidates.gather(1, best)


def batch_topk(pre: Float[Tensor, "batch d_sae"], n: int) -> Int[Tensor, " entries"]:
    """Flat positions, ascending, of the `n` largest positive entries (all, if fewer are positive); the first of ties
    win."""
    grouped = _grouped(pre)
    maxima, groups = grouped.amax(1), grouped.shape[2]
    # at least n groups, so at least n entries, reach the bound: what lies below it is not among the n largest
    bound = _lower_bound(maxima, n)
    row, first = (torch.from_numpy(each) for each in np.divmod(np.flatnonzero((maxima >= bound).numpy()), groups))
    members = grouped.transpose(1, 2)[row, first].flatten()
    near = (members >= bound).nonzero().squeeze(1)
    group, place = near >> GROUP_BITS, near & (GROUP - 1)
    positions, order = (row[group] * pre.shape[1] + first[group] + place * groups).sort()
    return positions[_largest(members[near][order], n)]


def nonzero(mask: Bool[Tensor, "batch d_sae"]) -> Int[Tensor, " entries"]:
    """Flat positions, ascending, of what is True."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def group(keys: Int[Tensor, " entries"], n: int) -> tuple[Int[Tensor, " entries"], Int[Tensor, " n_plus_1"]]:
    """(order, offsets): `order[offsets[i]:offsets[i + 1]]` are the entries whose key is i < n, ascending."""
    order = _radix_argsort(keys.numpy(), n)
    counts = torch.bincount(keys, minlength=n)
    return torch.from_numpy(order), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def dots(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], i: Int[Tensor, " entries"], j: Int[Tensor, " entries"]
) -> Float[Tensor, " entries"]:
    """⟨a[i], b[j]⟩ of each entry."""
    # embedding_bag's gradient to its per-sample weights is just this
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, b, j, i, i, 0)


def bags(
    table: Float[Tensor, "n d"],
    rows: Int[Tensor, " entries"],
    weights: Float[Tensor, " entries"],
    offsets: Int[Tensor, " bags_plus_1"],
) -> Float[Tensor, "bags d"]:
    """Σ weights · table[rows] over the entries `offsets[i]:offsets[i + 1]` of each bag i."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def prefix_errors_(
    rings: Float[Tensor, "prefix batch d"], target: Float[Tensor, "batch d"]
) -> Float[Tensor, " prefix"]:
    """Σ (ŷ − target)² of each prefix; `rings` become ŷ − target, ŷ their prefix sums."""
    rings[0].sub_(target)
    for below, above in pairwise(rings):
        above.add_(below)
    return torch.linalg.vector_norm(rings, dim=2).double().square_().sum(1).to(rings.dtype)


def suffix_sums_(errors: Float[Tensor, "prefix batch d"], weights: Float[Tensor, " prefix"]) -> None:
    """`errors[r]` becomes Σ_{m ≥ r} weights[m] · errors[m]: what the latents of ring r learn from all prefixes that
    hold them."""
    errors.mul_(weights[:, None, None])
    for r in reversed(range(len(errors) - 1)):
        errors[r].add_(errors[r + 1])


def _codes(pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "batch d_sae"]:
    return pre.contiguous().view(CODES[pre.dtype])


def _grouped(pre: Float[Tensor, "batch d_sae"]) -> Int[Tensor, "batch group groups"]:
    """Codes in groups: group g holds the latents g, g + groups, g + 2 · groups …, so that one vector instruction
    compares many groups. The smallest code, below which nothing lies, fills up the last ones."""
    codes = _codes(pre)
    if missing := -codes.shape[1] % GROUP:
        codes = F.pad(codes, (0, missing), value=torch.iinfo(codes.dtype).min)
    return codes.view(len(codes), GROUP, -1)


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
    cut = codes.kthvalue(len(codes) - n + 1).values
    chosen = codes > cut
    ties = (codes == cut).nonzero().squeeze(1)
    chosen[ties[: n - int(chosen.sum())]] = True
    return chosen.nonzero().squeeze(1)


def _radix_argsort(keys: np.ndarray, n: int) -> np.ndarray:
    """Stable argsort of keys in 0 … n − 1: numpy sorts 16-bit numbers by radix, larger keys take two passes."""
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if n > 2**16:
        order = order[np.argsort((keys[order] >> 16).astype(np.uint16), kind="stable")]
    return order
