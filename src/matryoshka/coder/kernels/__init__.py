"""What a sparse coder does with its few active entries and its rows, in three versions with the same functions.

    product             the dense product whose result only selects
    topk, batch_topk    which entries of the pre-activations are selected, exactly, without sorting them all
    nonzero             the positions of a mask, where a threshold selects
    group               entries by latent (the transposed pattern), or by ring and row
    dots                one inner product for each entry: exact pre-activations, gradients of latents
    bags                one weighted sum of rows for each bag: the nested reconstruction, gradients of both weights
    prefix_errors_      the squared error of every prefix in one pass
    suffix_sums_        its backward pass
    project_rows_       gradients of unit rows, kept on the sphere
    normalise_rows_     weights, brought back to it

`reference` is the oracle, `cpu` and `triton` are fast; nothing in them knows autograd. `operations` is the one place
that chooses; `using` chooses for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast, runtime_checkable

from torch import Tensor


@runtime_checkable
class Operations(Protocol):
    """The functions of each module; `reference` says what they do."""

    def product(self, inputs: Tensor, W: Tensor, b: Tensor) -> Tensor: ...
    def topk(self, pre: Tensor, k: int) -> Tensor: ...
    def batch_topk(self, pre: Tensor, n: int) -> Tensor: ...
    def nonzero(self, mask: Tensor) -> Tensor: ...
    def group(self, keys: Tensor, n: int) -> tuple[Tensor, Tensor]: ...
    def dots(self, a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor: ...
    def bags(self, table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor: ...
    def prefix_errors_(self, rings: Tensor, target: Tensor) -> Tensor: ...
    def suffix_sums_(self, errors: Tensor, weights: Tensor) -> None: ...
    def project_rows_(self, x: Tensor, rows: Tensor) -> None: ...
    def normalise_rows_(self, rows: Tensor) -> None: ...


_chosen: list[Operations] = []


def operations(x: Tensor) -> Operations:
    """The fastest version for the device of `x`: `cpu`, `triton` on CUDA where Triton is installed, or `reference`."""
    return _chosen[-1] if _chosen else _load(x.device.type)


@contextmanager
def using(version: Operations) -> Iterator[None]:
    """Take `version` wherever a tensor is, to hold one against another. It holds in all threads, for on a GPU backward
    passes run in one of their own."""
    _chosen.append(version)
    try:
        yield
    finally:
        _chosen.pop()


@cache
def _load(device: str) -> Operations:
    fast = {"cpu": "cpu", "cuda": "triton"}.get(device)
    if fast == "triton" and find_spec("triton") is None:
        fast = None
    return cast(Operations, import_module(f"{__name__}.{fast or 'reference'}"))
