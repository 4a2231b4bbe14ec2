"""The operations on a GPU, each near its memory traffic, and without a host sync: CUDA graphs can capture them.

Sums are accumulated in float32; float64 is left to `reference`. Under TRITON_INTERPRET=1 the kernels run on CPU
tensors. They carry `no_type_check` because their annotations are Triton's: jaxtyping's import hook leaves them alone.
"""

from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.kernels import reference
from matryoshka.coder.kernels.triton import bookkeeping, optimising, patterns, prefixes, quantising, selection, sums

product, quantise_rows = quantising.product, quantising.quantise_rows
topk, batch_topk = selection.topk, selection.batch_topk
nonzero = reference.nonzero  # the size of its result depends on the data: the host waits for it in any case
locate, group, transpose, keep = patterns.locate, patterns.group, patterns.transpose, patterns.keep
dots, exact, bags, encoder_gradients = sums.dots, sums.exact, sums.bags, sums.encoder_gradients
prefix_errors, prefix_gradients = prefixes.prefix_errors, prefixes.prefix_gradients
adam_ = optimising.adam_
follow_smallest_, count_silence_, tally_ = bookkeeping.follow_smallest_, bookkeeping.count_silence_, bookkeeping.tally_


def variance(y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    return y.var(0, correction=0).sum()
