"""What a coder's tensors look like, in plain values: with the weights it is all that a coder is. Imports no torch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from matryoshka.config import Section
from matryoshka.errors import MatryoshkaError

ActivationName = Literal["topk", "batchtopk", "jumprelu"]
"""What can be trained; coders of others may have "relu"."""
ConventionName = Literal["matryoshka", "saelens", "bussmann", "dictionary_learning"]
"""Of `losses`."""
Size = Annotated[int, Field(ge=1, lt=2**31)]


class ReLUConfig(Section):
    """Whatever is positive."""

    kind: Literal["relu"] = "relu"


class TopKConfig(Section):
    """The k largest of each row."""

    kind: Literal["topk"] = "topk"
    k: Size


class BatchTopKConfig(Section):
    """The k·B largest of a batch; at inference what exceeds one threshold."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: Size


class JumpReLUConfig(Section):
    """What exceeds a threshold of its own; training aims at k a row."""

    kind: Literal["jumprelu"] = "jumprelu"
    k: Size | None = None
    """None where nobody knows what it was trained for."""
    bandwidth: Annotated[float, Field(gt=0)] = 1.0
    """Width of the straight-through kernel around the thresholds, in the coder's units."""


NonlinearityConfig = Annotated[ReLUConfig | TopKConfig | BatchTopKConfig | JumpReLUConfig, Field(discriminator="kind")]
"""Which latents are active, each kind with its own parameters."""


class CoderConfig(Section):
    """Sites are positions here: a coder reads vectors of the sizes `reads` side by side, and writes `writes`."""

    reads: Annotated[tuple[Size, ...], Field(min_length=1)]
    writes: Annotated[tuple[Size, ...], Field(min_length=1)]
    d_sae: Size
    widths: tuple[int, ...]
    activation: NonlinearityConfig
    skip: bool = False

    @property
    def d_in(self) -> int:
        """Width of all that is read."""
        return sum(self.reads)

    @property
    def d_out(self) -> int:
        """Width of all that is written."""
        return sum(self.writes)

    @property
    def k(self) -> int | None:
        """Latents that are active on a row: exactly, on average, or aimed at; None where that is not known."""
        return getattr(self.activation, "k", None)

    @model_validator(mode="after")
    def _fits(self) -> "CoderConfig":
        try:
            check_ascending(self.widths, self.d_sae)
        except MatryoshkaError as error:
            raise ValueError(str(error)) from None
        if self.widths[-1] != self.d_sae or (self.k or 0) > self.d_sae:
            raise ValueError(f"widths {self.widths} must end with, and k {self.k} not exceed, d_sae {self.d_sae}")
        return self


def resolve_widths(widths: Sequence[int | float], d_sae: int) -> tuple[int, ...]:
    """Widths as numbers of latents: whole numbers as they are, fractions (floats in (0, 1]) of `d_sae`; () is (d_sae,).
    Raises MatryoshkaError unless they ascend strictly and end with d_sae."""
    if not widths:
        return (d_sae,)
    bad = [width for width in widths if isinstance(width, float) and not 0 < width <= 1]
    if bad:
        raise MatryoshkaError(f"coder.widths: {bad[0]} is neither a whole number nor a fraction in (0, 1]")
    resolved = tuple(round(width * d_sae) if isinstance(width, float) else int(width) for width in widths)
    check_ascending(resolved, d_sae)
    if resolved[-1] != d_sae:
        raise MatryoshkaError(f"coder.widths must end with coder.d_sae = {d_sae}, got {list(resolved)}")
    return resolved


def check_ascending(widths: Sequence[int], d_sae: int) -> None:
    """Raise MatryoshkaError unless `widths` ascend strictly within 1 … d_sae."""
    bounds = (0, *widths)
    if len(bounds) < 2 or any(a >= b for a, b in pairwise(bounds)) or widths[-1] > d_sae:
        raise MatryoshkaError(f"coder.widths must ascend strictly from at least 1 to {d_sae}, got {list(widths)}")
