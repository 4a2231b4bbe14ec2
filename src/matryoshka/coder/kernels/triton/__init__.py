"""The operations on a GPU, each near its memory traffic, and without a host sync: CUDA graphs can capture them.

`selection` has topk and batch_topk, `sums` dots, bags, prefix_errors_ and suffix_sums_, `rows` project_rows_ and
normalise_rows_. group is `torch.sort` of the narrowest integers, which is a radix sort.

Sums are accumulated in float32; float64 is left to `reference`. Under TRITON_INTERPRET=1 the kernels run on CPU
tensors. They carry `no_type_check` because their annotations are Triton's: jaxtyping's import hook leaves them alone.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from matryoshka.coder.kernels import reference
from matryoshka.coder.kernels.triton.rows import normalise_rows_, project_rows_
from matryoshka.coder.kernels.triton.selection import batch_topk, topk
from matryoshka.coder.kernels.triton.sums import bags, dots, prefix_errors_, suffix_sums_

__all__ = [
    "bags",
    "batch_topk",
    "dots",
    "group",
    "nonzero",
    "normalise_rows_",
    "prefix_errors_",
    "product",
    "project_rows_",
    "suffix_sums_",
    "topk",
]

product = reference.product
nonzero = reference.nonzero  # the size of its result depends on the data: the host waits for it in any case


def group(keys: Int[Tensor, " entries"], n: int) -> tuple[Int[Tensor, " entries"], Int[Tensor, " n_plus_1"]]:
    """(order, offsets): `order[offsets[i]:offsets[i + 1]]` are the entries whose key is i < n, ascending."""
    # half the digits to sort by where keys fit into 16 bits
    dtype, lowest = (torch.int16, -(2**15)) if n <= 2**16 else (torch.int32, 0)
    ordered, order = (keys + lowest).to(dtype).sort(stable=True)
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=keys.device)
    values = torch.arange(lowest, lowest + n, dtype=dtype, device=keys.device)
    torch.searchsorted(ordered, values, right=True, out=offsets[1:])
    return order, offsets
