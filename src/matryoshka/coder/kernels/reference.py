"""The operations in plain torch, on any device: the oracle of the fast modules, which select without sorting all, and
their fallback. Those made of another operation take a fast one in its place."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim.adam import adam

from matryoshka.coder.kernels import (
    ADAM_EPSILON,
    Entries,
    Inputs,
    Kept,
    Located,
    Pre,
    Precision,
    Rings,
    Table,
    Taught,
    Transposed,
    Values,
)

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


def locate(positions: Entries, batch: int, d_sae: int) -> Located:
    """The entries at ascending flat positions."""
    rows = positions // d_sae
    return positions - rows * d_sae, rows, _starts(rows, batch)


def _starts(keys: Entries, n: int) -> Int[Tensor, " n_plus_1"]:
    """Where each of the ascending `keys` below n begins."""
    return torch.searchsorted(keys, torch.arange(n + 1, device=keys.device))


def group(keys: Entries, n: int) -> tuple[Entries, Int[Tensor, " n_plus_1"]]:
    """(order, offsets): `order[offsets[i]:offsets[i + 1]]` are the entries whose key is i < n, ascending. The key is a
    latent (that is the transposed pattern), or a ring and row."""
    counts = torch.zeros(n, dtype=torch.int64, device=keys.device).index_add_(0, keys, torch.ones_like(keys))
    return keys.argsort(stable=True), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def transpose(indices: Entries, rows: Entries, n: int, group: Callable[..., Any] = group) -> Transposed:
    """Entries, given row by row, ordered by which of n latents they are of, rows ascending within each."""
    order, offsets = group(indices, n)
    return order, rows[order], indices[order], offsets


def keep(places: Int[Tensor, " kept"], pattern: Located, values: Values, by: Transposed) -> Kept:
    """Of a pattern, its values and the same by latent the entries at `places` alone, which are ordered row by row;
    nothing is sorted again. Other versions want the places ascending."""
    (indices, rows, offsets), (order, by_rows, by_indices, by_offsets) = pattern, by
    counted = torch.arange(len(places), device=places.device)
    now = torch.full_like(order, -1).scatter_(0, places, counted)[order]
    kept = (now >= 0).nonzero().squeeze(1)
    ours = indices[places], rows[places], _starts(rows[places], len(offsets) - 1)
    return ours, values[places], (now[kept], by_rows[kept], by_indices[kept], torch.searchsorted(kept, by_offsets))


def dots(a: Table, b: Float[Tensor, "m d"], i: Entries, j: Entries) -> Values:
    """⟨a[i], b[j]⟩ of each entry: exact pre-activations, gradients of latents."""
    return (a[i] * b[j]).sum(1)


def exact(
    inputs: Inputs, rows: Table, biases: Float[Tensor, " d_sae"], by: Transposed, dots: Callable[..., Any] = dots
) -> Values:
    """Pre-activations of a pattern's entries, `rows` of the encoder a latent each."""
    order, of_rows, indices, _ = by
    values = dots(inputs, rows, of_rows, indices) + biases[indices]
    return torch.empty_like(values).scatter_(0, order, values)


def bags(table: Table, rows: Entries, weights: Values, offsets: Int[Tensor, " bags_plus_1"]) -> Float[Tensor, "bags d"]:
    """Σ weights · table[rows] over the entries `offsets[i]:offsets[i + 1]` of each bag i: the nested reconstruction,
    the gradients of both weights."""
    bag = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff(), output_size=len(rows))
    sums = table.new_zeros(len(offsets) - 1, table.shape[1])
    return sums.index_add_(0, bag, weights[:, None] * table[rows])


def encoder_gradients(
    inputs: Inputs, gradient: Values, by: Transposed, bags: Callable[..., Any] = bags
) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"]]:
    """What the gradient of `exact` is to rows and biases."""
    order, rows, _, offsets = by
    weights = gradient[order]
    return bags(inputs, rows, weights, offsets), torch.segment_reduce(weights, "sum", offsets=offsets)


def ring_of(indices: Entries, widths: Iterable[int | Tensor]) -> Entries:
    """The ring of each latent. Compared number by number, on whatever device the latents are."""
    ring = torch.zeros_like(indices)
    for width in [*widths][:-1]:
        ring += indices >= width
    return ring


def prefix_errors(
    W_dec: Table, values: Values, indices: Entries, rows: Entries, offsets: Int[Tensor, " batch_plus_1"],
    target: Float[Tensor, "batch d"], bias: Float[Tensor, " d"] | None, widths: Int[Tensor, " prefix"],
) -> tuple[Float[Tensor, " prefix"], Rings]:  # fmt: skip
    """Σ (ŷ_m − target)² of every prefix m, ŷ_m the bias and the weighted sum of those rows of W_dec that lie within it,
    entries row by row in any order; and Σ_{m ≥ r} (ŷ_m − target) for every ring r, from which its latents learn: what
    is left for `prefix_gradients`. Other versions may leave something else there, but for the last plane."""
    target = target if bias is None else target - bias
    batch, d = target.shape
    errors = W_dec.new_zeros(len(widths) * batch, d)
    errors.index_add_(0, ring_of(indices, widths) * batch + rows, values[:, None] * W_dec[indices])
    errors = errors.view(len(widths), batch, d).cumsum(0).sub_(target)
    return errors.square().sum((1, 2)), errors.flip(0).cumsum(0).flip(0)


def prefix_gradients(
    left: Rings, scale: Float[Tensor, ""], W_dec: Table, values: Values, by: Transposed,
    widths: Int[Tensor, " prefix"], each_row: bool,
) -> tuple[Values, Table, Float[Tensor, "*rows d"]]:  # fmt: skip
    """`scale` times the half gradients of the sum of all that `prefix_errors` has added up, to values, W_dec and what
    is added to all prefixes of each row, or of all rows. It may overwrite `left`."""
    order, rows, indices, offsets = by
    planes, at = left.flatten(0, 1), ring_of(indices, widths) * left.shape[1] + rows
    of_values = torch.empty_like(values).scatter_(0, order, dots(planes, W_dec, at, indices))
    added = scale * left[0]
    return scale * of_values, scale * bags(planes, at, values[order], offsets), added if each_row else added.sum(0)


def variance(y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Σ over d of (y − ȳ)², mean over the batch, ȳ the batch's mean of each dimension."""
    return (y - y.mean(0)).square().sum(-1).mean()


def adam_(
    taught: Sequence[Taught], lr: float | Float[Tensor, ""], betas: tuple[float, float], largest_norm: float
) -> Float[Tensor, ""]:
    """A step of Adam (Kingma & Ba 2015), with unit rows kept on their sphere and the norm of all gradients clipped;
    returns that norm. Forgetful weights move only where they have a gradient. What the gradients hold afterwards is not
    said."""
    for one in taught:
        if one.unit_rows:
            project_rows_(one.gradient, one.parameter)
    norms = [torch.linalg.vector_norm(one.gradient) for one in taught]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    fused_adam_(taught, lr, betas, (norm / largest_norm).clamp(min=1).float())  # it takes no other divisor
    for one in taught:
        if one.unit_rows:
            normalise_rows_(one.parameter)
    return norm


def fused_adam_(
    taught: Sequence[Taught],
    lr: float | Float[Tensor, ""],
    betas: tuple[float, float],
    divisor: Float[Tensor, ""] | None,
) -> None:
    """Torch's fused Adam, which divides gradients by `divisor` while it reads them: no pass of its own over them."""
    for one in taught:
        if one.forgetful:
            one.exp_avg.masked_fill_(one.gradient == 0, 0)
    parameters, gradients, means, squares, steps, *_ = map(list, zip(*taught, strict=True))
    beta1, beta2 = betas
    adam(
        parameters, gradients, means, squares, [], steps, fused=True, grad_scale=divisor, amsgrad=False, beta1=beta1,
        beta2=beta2, lr=lr, weight_decay=0, eps=ADAM_EPSILON, maximize=False,
    )  # fmt: skip


def project_rows_(x: Table, rows: Table) -> None:
    """Remove from each row of `x` its part parallel to the same one of `rows`, which have norm 1."""
    x.addcmul_((x * rows).sum(dim=1, keepdim=True), rows, value=-1)


def normalise_rows_(rows: Table) -> None:
    """Bring each row to norm 1; rows of zeros stay."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny))


def follow_smallest_(
    threshold: Float[Tensor, ""], steps: Int[Tensor, ""], values: Float[Tensor, " some"], decay: float
) -> None:
    """Move `threshold` towards the smallest positive one of `values`, a mean over the first steps and an exponential
    one after; where none is positive this is no step."""
    smallest = values.masked_fill(values <= 0, torch.inf).min().float()
    some = smallest < torch.inf
    steps += some
    weight = (1 / steps.clamp(min=1)).clamp(min=1 - decay).float()
    threshold += torch.where(some, weight * (smallest - threshold), 0)


def count_silence_(silent: Int[Tensor, " d_sae"], values: Values, by: Transposed, batch: int) -> None:
    """Tokens since each latent fired, after a batch of so many more: 0 where one of its entries is positive."""
    order, _, indices, _ = by
    silent += batch
    spared = (values[order] <= 0) * torch.iinfo(silent.dtype).max
    silent.scatter_reduce_(0, indices, spared, "amin")


def tally_(
    sums: Float[Tensor, " terms"],
    terms: Sequence[Float[Tensor, ""] | None],
    x: Inputs,
    bad_step: Int[Tensor, ""],
    step: int | Int[Tensor, ""],
) -> None:
    """Add each term that there is to its sum. `bad_step` becomes `step` if one of them is not finite, or a number of
    `x`, and none was before."""
    everything = x.sum()
    for total, term in zip(sums, terms, strict=True):
        if term is not None:
            total += term
            everything = everything + term
    bad = everything - everything != 0  # of NaN and Inf alone
    bad_step.copy_(torch.where(bad & (bad_step < 0), step, bad_step))
