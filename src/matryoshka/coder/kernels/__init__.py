"""What a sparse coder does with its few active entries, and a step of its weights, in three versions with the same
functions.

`reference` says what each function does and is the oracle; `cpu` and `triton` are fast, and say only what is theirs
alone. Nothing in them knows autograd. `operations` is the one place that chooses; `using` chooses for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple, Protocol, cast, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

Precision = Literal["float32", "bfloat16", "fp8"]
"""Of the operands of the dense product; float32: the weights' own, whatever that is."""
Inputs = Float[Tensor, "batch d_in"]
Pre = Float[Tensor, "batch d_sae"]
Entries = Int[Tensor, " entries"]
Values = Float[Tensor, " entries"]
Table = Float[Tensor, "n d"]
Rings = Float[Tensor, "prefix batch d"]
Located = tuple[Entries, Entries, Int[Tensor, " batch_plus_1"]]
"""Of a pattern's entries: indices, rows, offsets of the rows."""
Transposed = tuple[Entries, Entries, Entries, Int[Tensor, " n_plus_1"]]
"""`latents.ByLatent`: order, rows, indices, offsets."""
Kept = tuple[tuple[Tensor, Tensor, Tensor], Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]
"""Of fewer entries: as `Located`, values, and as `Transposed`."""

ADAM_EPSILON = 1e-8
"""What is added to the root of the second moment."""


class Taught(NamedTuple):
    """A weight and what moves it. The first four are of one shape, and contiguous."""

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Float[Tensor, ""]
    """Steps so far, on the device."""
    unit_rows: bool
    """Whether each row has norm 1, and is to keep it."""
    forgetful: bool = False
    """Whether a number's momentum ends in the first step that has no gradient for it."""


@runtime_checkable
class Operations(Protocol):
    """The functions of each module."""

    def product(self, inputs: Tensor, W: Tensor, b: Tensor, precision: Precision) -> Tensor: ...
    def topk(self, pre: Tensor, k: int) -> Tensor: ...
    def batch_topk(self, pre: Tensor, n: int) -> Tensor: ...
    def nonzero(self, mask: Tensor) -> Tensor: ...
    def locate(self, positions: Tensor, batch: int, d_sae: int) -> Located: ...
    def group(self, keys: Tensor, n: int) -> tuple[Tensor, Tensor]: ...
    def transpose(self, indices: Tensor, rows: Tensor, n: int) -> Transposed: ...
    def keep(self, places: Tensor, pattern: Located, values: Tensor, by: Transposed) -> Kept: ...
    def dots(self, a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor: ...
    def exact(self, inputs: Tensor, rows: Tensor, biases: Tensor, by: Transposed) -> Tensor: ...
    def bags(self, table: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor: ...
    def encoder_gradients(self, inputs: Tensor, gradient: Tensor, by: Transposed) -> tuple[Tensor, Tensor]: ...
    def prefix_errors(
        self,
        W_dec: Tensor,
        values: Tensor,
        indices: Tensor,
        rows: Tensor,
        offsets: Tensor,
        target: Tensor,
        bias: Tensor | None,
        widths: Tensor,
    ) -> tuple[Tensor, Tensor]: ...
    def prefix_gradients(
        self,
        left: Tensor,
        scale: Tensor,
        W_dec: Tensor,
        values: Tensor,
        by: Transposed,
        widths: Tensor,
        each_row: bool,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def variance(self, y: Tensor) -> Tensor: ...
    def adam_(
        self, taught: Sequence[Taught], lr: float | Tensor, betas: tuple[float, float], largest_norm: float
    ) -> Tensor: ...
    def follow_smallest_(self, threshold: Tensor, steps: Tensor, values: Tensor, decay: float) -> None: ...
    def count_silence_(self, silent: Tensor, values: Tensor, by: Transposed, batch: int) -> None: ...
    def tally_(
        self, sums: Tensor, terms: Sequence[Tensor | None], x: Tensor, bad_step: Tensor, step: int | Tensor
    ) -> None: ...


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


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@cache
def _load(device: str) -> Operations:
    fast = {"cpu": "cpu", "cuda": "triton" if has_triton() else "reference"}
    return cast(Operations, import_module(f"{__name__}.{fast.get(device, 'reference')}"))
