"""The Triton kernels for tests: interpreted on CPU tensors, or compiled where there is a GPU.

To be imported while tests are collected: a process in which Triton was imported before without interpreting does not
interpret any more, and much of torch imports it.
"""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# for the import and for single tests only: whatever else runs in this process must not see it
INTERPRET = {} if GPU else {"TRITON_INTERPRET": "1"}


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Have `fast` run on tensors of DEVICE."""
    for name, value in INTERPRET.items():
        patch.setenv(name, value)


with pytest.MonkeyPatch.context() as _patch:
    interpret(_patch)
    fast = import_module("matryoshka.coder.kernels.triton") if find_spec("triton") else None
