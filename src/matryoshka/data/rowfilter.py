"""Which rows count, in training and in every measure: no BOS, no window's first token, no attention sink.

The rule is measured once, on a fixed number of windows, and kept with the coder: every later pass takes it as it is.
Rows that are not finite are no sinks. They are counted apart, and where there are more than a few the run stops.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site

SINK_FACTOR = 10.0
"""A row is an attention sink if its norm at a site exceeds so many times the median norm there. GPT-2's first position
has some 30 times, Llama's and Gemma's some 100 times; ordinary tokens stay below 3."""
SAMPLE = 16
"""Windows on which the median is taken, whatever the speed options are."""
MOST_NOT_FINITE = 0.01
"""Share of the rows that may be NaN or Inf before a pass is refused."""


class RowCounts(NamedTuple):
    """How many rows a pass has read, and what became of them."""

    read: int = 0
    left_out: int = 0
    """BOS, first tokens, sinks; those that are not finite are not among them."""
    not_finite: int = 0
    """NaN or Inf at a site."""

    def plus(self, other: "RowCounts") -> "RowCounts":
        """Both passes together."""
        return RowCounts(*(a + b for a, b in zip(self, other, strict=True)))


class Sorted(NamedTuple):
    """The positions of a batch."""

    keep: Bool[Tensor, "batch position"]
    """Those that count."""
    not_finite: Bool[Tensor, "batch position"]
    """Those that would, were it not for a NaN or Inf at one of the sites."""


class RowFilter:
    """Which positions count: not BOS, not a window's first token, norms at most `largest` at every site, all finite."""

    def __init__(self, bos: int | None, largest: Mapping[Site, float]) -> None:
        self.bos, self.largest = bos, dict(largest)

    @classmethod
    def measure(cls, lm: LanguageModel, windows: Windows, sites: Iterable[Site]) -> "RowFilter":
        """With SINK_FACTOR times the median of the finite norms on the first SAMPLE windows as the largest norm at each
        site. Raises MatryoshkaError where nothing is finite."""
        return cls.of(lm.bos, lm.read(torch.from_numpy(windows[:SAMPLE]).to(lm.device), sites))

    @classmethod
    def of(cls, bos: int | None, activations: Mapping[Site, Float[Tensor, "batch position d"]]) -> "RowFilter":
        """The same of windows that have been read."""
        return cls(bos, {site: SINK_FACTOR * _median(site, x[:, 1:]) for site, x in activations.items()})

    def only(self, sites: Iterable[Site]) -> "RowFilter":
        """The same rule by the norms at these sites alone."""
        return RowFilter(self.bos, {site: self.largest[site] for site in sites})

    def and_at(self, largest: Mapping[Site, float]) -> "RowFilter":
        """The same rule, and at most these norms at these sites."""
        return RowFilter(self.bos, self.largest | dict(largest))

    def __call__(
        self, tokens: Int[Tensor, "batch position"], activations: Mapping[Site, Float[Tensor, "batch position d"]]
    ) -> Bool[Tensor, "batch position"]:
        """True where a position counts, given the activations there."""
        return self.sort(tokens, activations).keep

    def sort(
        self, tokens: Int[Tensor, "batch position"], activations: Mapping[Site, Float[Tensor, "batch position d"]]
    ) -> "Sorted":
        """Which positions count, and which would if they were finite."""
        by_place = torch.ones_like(tokens, dtype=torch.bool)
        by_place[:, 0] = False
        if self.bos is not None:
            by_place &= tokens != self.bos
        keep, finite = by_place.clone(), torch.ones_like(by_place)
        for site, largest in self.largest.items():
            norms = _norms(activations[site])
            keep &= norms <= largest  # a comparison with NaN is False
            finite &= norms.isfinite()
        return Sorted(keep, by_place & ~finite)


def refuse_not_finite(counts: RowCounts, sites: Iterable[Site], lm: LanguageModel) -> None:
    """Raise MatryoshkaError where more than MOST_NOT_FINITE of the rows that were read are NaN or Inf."""
    if counts.not_finite > MOST_NOT_FINITE * counts.read:
        where = ", ".join(map(str, sites))
        raise MatryoshkaError(
            f"{lm.info.name}: {counts.not_finite:,} of {counts.read:,} rows at {where} are NaN or Inf in"
            f" {lm.precision}; try --model.dtype bfloat16 or float32"
        )


def _norms(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """In float32 at least, without a copy of x in it."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))


def _median(site: Site, x: Float[Tensor, "batch position d"]) -> float:
    norms = _norms(x)
    finite = norms[norms.isfinite()]
    if not len(finite):
        raise MatryoshkaError(f"site {site}: all activations on the first windows are NaN or Inf; try another dtype")
    return finite.median().item()
