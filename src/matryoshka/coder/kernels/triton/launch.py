"""How a kernel is started."""

from typing import Any

import torch
from torch import Tensor


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` on the GPU of its first argument, which need not be the current one."""
    if 0 not in grid:
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **constants)


def check_contiguous(x: Tensor) -> None:
    """Raise ValueError unless `x` is: a kernel that overwrites cannot work on a copy."""
    if not x.is_contiguous():
        raise ValueError("what is overwritten must be contiguous")
