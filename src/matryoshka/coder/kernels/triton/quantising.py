"""The dense product that selects, in FP8 where it is asked for: both operands with a scale for each row.

A program a row, which it holds in registers: one read, one write.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.kernels import Inputs, Pre, Precision, Table, reference
from matryoshka.coder.kernels.triton import launch

LARGEST = torch.finfo(reference.FP8).max
NUMBERS_A_WARP = 512  # of a row: 16 for each thread, four loads of 16 bytes in flight


@triton.jit
@no_type_check
def _quantise_rows(rows, quantised, scales, d, stride, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, D)
    numbers = tl.load(rows + row * stride + column, mask=column < d, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(numbers)), SMALLEST) / LARGEST
    tl.store(scales + row, scale)
    tl.store(quantised + row * d + column, (numbers / scale).to(quantised.dtype.element_ty), mask=column < d)


def quantise_rows(rows: Table) -> tuple[Tensor, Float[Tensor, "n 1"]]:
    n, d = rows.shape
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    quantised = torch.empty(n, d, dtype=reference.FP8, device=rows.device)
    scales = torch.empty(n, 1, dtype=torch.float32, device=rows.device)
    columns = triton.next_power_of_2(d)
    sizes = {"LARGEST": LARGEST, "SMALLEST": reference.SMALLEST_ROW, "D": columns}
    warps = min(16, max(1, columns // NUMBERS_A_WARP))
    launch.run(_quantise_rows, (n,), rows, quantised, scales, d, rows.stride(0), **sizes, num_warps=warps)
    return quantised, scales


def product(inputs: Inputs, W: Float[Tensor, "d_in d_sae"], b: Float[Tensor, " d_sae"], precision: Precision) -> Pre:
    if precision != "fp8" or not inputs.is_cuda:  # where kernels are interpreted there is no such product
        return reference.product(inputs, W, b, precision)
    (x, of_x), (rows, of_rows) = quantise_rows(inputs), quantise_rows(W.T)
    low = torch.bfloat16
    return torch.ops.aten._scaled_mm(x, rows.T, of_x, of_rows.T, bias=b.to(low), out_dtype=low, use_fast_accum=True)
