"""The operations on a GPU, each near its memory traffic, and without a host sync: CUDA graphs can capture them.

group is `torch.sort` of the narrowest integers, which is a radix sort.

Sums are accumulated in float32; float64 is left to `reference`. Under TRITON_INTERPRET=1 the kernels run on CPU
tensors. They carry `no_type_check` because their annotations are Triton's: jaxtyping's import hook leaves them alone.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.kernels import Entries, reference
from matryoshka.coder.kernels.triton import bookkeeping, prefixes, quantising, selection, sums, weights

product, quantise_rows = quantising.product, quantising.quantise_rows
topk, batch_topk = selection.topk, selection.batch_topk
nonzero = reference.nonzero  # the size of its result depends on the data: the host waits for it in any case
dots, bags = sums.dots, sums.bags
prefix_errors, prefix_gradients = prefixes.prefix_errors, prefixes.prefix_gradients
adam_ = weights.adam_
follow_smallest_, count_silence_, tally_ = bookkeeping.follow_smallest_, bookkeeping.count_silence_, bookkeeping.tally_


def variance(y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    return y.var(0, correction=0).sum()


def places(mask: Bool[Tensor, " all"], n: int) -> Entries:
    return torch.searchsorted(mask.cumsum(0), torch.arange(1, n + 1, device=mask.device))


def group(keys: Entries, n: int) -> tuple[Entries, Int[Tensor, " n_plus_1"]]:
    # half the digits to sort by where keys fit into 16 bits
    dtype, lowest = (torch.int16, -(2**15)) if n <= 2**16 else (torch.int32, 0)
    ordered, order = (keys + lowest).to(dtype).sort(stable=True)
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=keys.device)
    values = torch.arange(lowest, lowest + n, dtype=dtype, device=keys.device)
    torch.searchsorted(ordered, values, right=True, out=offsets[1:])
    return order, offsets
