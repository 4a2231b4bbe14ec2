"""The operations in plain torch, on any device: the oracle of the fast modules, which select without sorting all, and
their fallback."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, Inputs, Pre, Precision, Rings, Table, Values

FP8 = torch.float8_e4m3fn
SMALLEST_ROW = 1e-30
"""What the largest number of a row counts for at least: its scale is a divisor."""


def product(inputs: Inputs, W: Float[Tensor, "d_in d_sae"], b: Float[Tensor, " d_sae"], precision: Precision) -> Pre:
    """inputs W + b, the one dense product, which only selects; its result is bfloat16 where its operands are of low
    precision."""
    low = torch.bfloat16
    match precision:
        case "float32":
            return torch.addmm(b, inputs, W)
        case "bfloat16":
            return torch.addmm(b.to(low), inputs.to(low), W.to(low))
        case "fp8":
            x, rows = (quantised.float() * scales for quantised, scales in map(quantise_rows, (inputs, W.T)))
            with torch.autocast(inputs.device.type, enabled=False):
                return torch.addmm(b.float(), x, rows.T).to(low)


def quantise_rows(rows: Table) -> tuple[Tensor, Float[Tensor, "n 1"]]:
    """Each row in FP8, its largest number at the end of what that holds, and the scale that brings it back; zeros stay
    zeros."""
    scales = rows.float().abs().amax(1, keepdim=True).clamp(min=SMALLEST_ROW) / torch.finfo(FP8).max
    return (rows / scales).to(FP8), scales


def topk(pre: Pre, k: int) -> Int[Tensor, "batch k"]:
    """The latents of the `k` largest entries of each row, in any order."""
    return pre.topk(k, dim=1, sorted=False).indices


def batch_topk(pre: Pre, n: int) -> Entries:
    """Flat positions, ascending, of the `n` largest positive entries (all, if fewer are positive); the first of ties
    win."""
    flat = pre.flatten()
    chosen = flat.argsort(descending=True, stable=True)[:n].sort().values
    return chosen[flat[chosen] > 0]


def nonzero(mask: Bool[Tensor, "batch d_sae"]) -> Entries:
    """Flat positions, ascending, of what is True, where a threshold selects."""
    return mask.flatten().nonzero().squeeze(1)


def places(mask: Bool[Tensor, " all"], n: int) -> Entries:
    """Where the `n` entries are, ascending, that are True: a size that is known before."""
    return mask.nonzero().squeeze(1)


def group(keys: Entries, n: int) -> tuple[Entries, Int[Tensor, " n_plus_1"]]:
    """(order, offsets): `order[offsets[i]:offsets[i + 1]]` are the entries whose key is i < n, ascending. The key is a
    latent (that is the transposed pattern), or a ring and row."""
    counts = torch.zeros(n, dtype=torch.int64, device=keys.device).index_add_(0, keys, torch.ones_like(keys))
    return keys.argsort(stable=True), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def dots(a: Table, b: Float[Tensor, "m d"], i: Entries, j: Entries) -> Values:
    """⟨a[i], b[j]⟩ of each entry: exact pre-activations, gradients of latents."""
    return (a[i] * b[j]).sum(1)


def bags(table: Table, rows: Entries, weights: Values, offsets: Int[Tensor, " bags_plus_1"]) -> Float[Tensor, "bags d"]:
    """Σ weights · table[rows] over the entries `offsets[i]:offsets[i + 1]` of each bag i: the nested reconstruction,
    the gradients of both weights."""
    bag = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff(), output_size=len(rows))
    sums = table.new_zeros(len(offsets) - 1, table.shape[1])
    return sums.index_add_(0, bag, weights[:, None] * table[rows])


def prefix_errors_(rings: Rings, target: Float[Tensor, "batch d"]) -> Float[Tensor, " prefix"]:
    """Σ (ŷ − target)² of each prefix; `rings` become ŷ − target, ŷ their prefix sums."""
    torch.cumsum(rings, 0, out=rings)
    rings.sub_(target)
    return rings.square().sum((1, 2))


def suffix_sums_(errors: Rings, weights: Float[Tensor, " prefix"]) -> None:
    """`errors[r]` becomes Σ_{m ≥ r} weights[m] · errors[m]: what the latents of ring r learn from all prefixes that
    hold them."""
    errors.mul_(weights[:, None, None])
    errors.copy_(errors.flip(0).cumsum(0).flip(0))


def project_rows_(x: Table, rows: Table) -> None:
    """Remove from each row of `x` its part parallel to the same one of `rows`, which have norm 1."""
    x.addcmul_((x * rows).sum(dim=1, keepdim=True), rows, value=-1)


def normalise_rows_(rows: Table) -> None:
    """Bring each row to norm 1; rows of zeros stay."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny))
