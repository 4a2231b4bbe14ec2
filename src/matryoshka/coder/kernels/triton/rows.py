"""The constraint of unit rows: a program a row, which comes from the cache the second time that it is read."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.kernels import reference
from matryoshka.coder.kernels.triton import launch

COLUMNS = 1024  # of a row at once: 8 for each of 128 threads


@triton.jit
@no_type_check
def _project_rows(x, rows, d, COLUMNS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * d
    products = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = tl.load(x + first + column, mask=column < d, other=0).to(tl.float32)
        products += here * tl.load(rows + first + column, mask=column < d, other=0).to(tl.float32)
    parallel = tl.sum(products)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = tl.load(x + first + column, mask=column < d).to(tl.float32)
        row = tl.load(rows + first + column, mask=column < d).to(tl.float32)
        tl.store(x + first + column, here - parallel * row, mask=column < d)


def project_rows_(x: Float[Tensor, "n d"], rows: Float[Tensor, "n d"]) -> None:
    """Remove from each row of `x` its part parallel to the same one of `rows`, which have norm 1."""
    if torch.float64 in (x.dtype, rows.dtype):
        return reference.project_rows_(x, rows)
    launch.check_contiguous(x)
    launch.run(_project_rows, (len(x),), x, rows.contiguous(), x.shape[1], COLUMNS=COLUMNS)


@triton.jit
@no_type_check
def _normalise_rows(rows, d, COLUMNS: tl.constexpr, TINY: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * d
    squares = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = tl.load(rows + first + column, mask=column < d, other=0).to(tl.float32)
        squares += here * here
    norm = tl.maximum(tl.sqrt_rn(tl.sum(squares)), TINY)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = tl.load(rows + first + column, mask=column < d).to(tl.float32)
        tl.store(rows + first + column, here / norm, mask=column < d)


def normalise_rows_(rows: Float[Tensor, "n d"]) -> None:
    """Bring each row to norm 1; rows of zeros stay."""
    if rows.dtype == torch.float64:
        return reference.normalise_rows_(rows)
    launch.check_contiguous(rows)
    sizes = {"COLUMNS": COLUMNS, "TINY": torch.finfo(torch.float32).tiny}
    launch.run(_normalise_rows, (len(rows),), rows, rows.shape[1], **sizes)
