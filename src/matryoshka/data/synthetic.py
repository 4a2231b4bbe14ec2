"""Synthetic activations of known features, as SynthSAEBench draws them (arXiv:2602.14687), but sparsely.

A feature is on where a normal variable of its own, correlated with the others' through shared factors, exceeds its
threshold (a Gaussian copula); then the forest has its say. For each sample, with ε ~ N(0, 1) of every factor:

    1. roots, and what stands alone    on where ⟨loading, ε⟩ + σ η > t, with P = propensity and η ~ N(0, 1)
    2. magnitude                       relu(mean + deviation · N(0, 1)); what is 0 is off
    3. level by level, of those on     the children, by 1 and 2; where they exclude each other, one of those on, each as
                                       likely as the others; magnitudes times the parent's over its mean
    4. activation                      bias + Σ magnitude · direction

Given ε features are independent. So the children of what is off are never drawn; and in 1 no η is: a feature is on with
probability p where a Poisson count of rate −log(1 − p) is not 0, and such counts are thinned from few events, at the
rate of the likeliest of a group of features. The law is exactly the same, for a fiftieth of the random numbers.

All of it is in tensors of one device, and depends on (config, split, seed, number) alone.
"""

import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.data.forest import Forest
from matryoshka.data.rowfilter import RowCounts, RowFilter
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.stream import Chunk, seeded
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.sites import Site

SITE = Site("resid_post", 0)
"""The only place that a synthetic model has."""
ENTRIES = 2**22
"""Features of samples that are looked at at once: they stay near the processor."""
GPU_ENTRIES = 2**27
"""The same for training on a GPU, where a part costs some 100 launches and nine questions whatever its size: of 16,384
features 24 thousand samples, not 744. Measures take the smaller parts there too: these are the blocks of their
intervals."""
GROUP = 32
"""Features that share a bound of how likely they are on: neighbours, so nearly as frequent as one another."""
TRAIN, HELD_OUT = 1, 2
"""The splits: samples of one never come in another."""


def training_entries(device: torch.device) -> int:
    """Features of training samples that are looked at at once."""
    return GPU_ENTRIES if device.type == "cuda" else ENTRIES


class SyntheticInfo(NamedTuple):
    """What can be said of a synthetic model without drawing it."""

    config: SyntheticConfig

    @property
    def name(self) -> str:
        return self.config.name

    def check(self, site: Site) -> int:
        """Width of the activations at `site`; an error at any but the one that there is."""
        if site != SITE:
            raise MatryoshkaError(f"site {site}: a synthetic model has one site alone, {SITE}")
        return self.config.dimension


class Samples(NamedTuple):
    """Activations, and what is behind them: entry by entry, in the order of the rows."""

    x: Float[Tensor, "rows d"]
    rows: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    magnitudes: Float[Tensor, " entries"]


class _On(NamedTuple):
    """Features that are on."""

    rows: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    magnitudes: Float[Tensor, " entries"]

    def at(self, entries: Int[Tensor, " some"]) -> "_On":
        """These of them."""
        return _On(*(values[entries] for values in self))


class SyntheticModel:
    """Draws activations of a forest of features."""

    def __init__(self, config: SyntheticConfig, device: torch.device) -> None:
        self.config, self.info, self.device = config, SyntheticInfo(config), device
        self.forest = Forest.grow(config).to(device)
        forest = self.forest
        own = (1 - forest.loadings.square().sum(1)).sqrt()
        thresholds = -torch.special.ndtri(forest.propensities.double()).float()
        # what η is added to, divided by σ: ⟨its row, (ε, 1)⟩
        self._drives = torch.cat([forest.loadings, -thresholds[:, None]], dim=1) / own[:, None]
        roots = torch.arange(config.trees, device=device)
        self._tops = torch.cat([roots, torch.arange(sum(config.levels), config.features, device=device)])
        never = torch.tensor([0.0] * config.factors + [-math.inf], device=device)
        missing = -len(self._tops) % GROUP
        self._top_drives = torch.cat([self._drives[self._tops], never.expand(missing, -1)])

    def draw(self, count: int, *seeds: int, entries: int = ENTRIES) -> Iterator[Samples]:
        """`count` samples in a few parts, of some `entries` features of samples each; the same ones for the same
        `seeds` and `entries` on the same kind of device."""
        generator, at_once = seeded(self.device, self.config.seed, *seeds), max(1, entries // len(self._top_drives))
        for start in range(0, count, at_once):
            yield self._part(min(at_once, count - start), generator)

    def _part(self, rows: int, generator: torch.Generator) -> Samples:
        common = F.pad(self._normal(generator, rows, self.config.factors), (0, 1), value=1.0)
        on = self._top(common, generator)
        levels = [on]
        above = on.at((on.features < self.config.trees).nonzero().squeeze(1))
        for _ in range(self.config.depth if self.config.trees else 0):
            above = self._children(above, common, generator)
            levels.append(above)
        entries = _On(*(torch.cat(values) for values in zip(*levels, strict=True)))
        in_order = entries.at(entries.rows.argsort(stable=True))
        return Samples(self._activations(in_order, rows), *in_order)

    def _normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=self.device)

    def _top(self, common: Float[Tensor, "rows factors_1"], generator: torch.Generator) -> _On:
        """Roots, and what stands alone."""
        drive = common @ self._top_drives.T
        bounds = _rate(drive.unflatten(1, (-1, GROUP)).amax(2)).flatten()
        events = torch.poisson(GROUP * bounds, generator=generator).long()
        group = torch.repeat_interleave(events)
        place = group * GROUP + torch.randint(GROUP, group.shape, generator=generator, device=self.device)
        draws = torch.rand(group.shape, generator=generator, device=self.device) * bounds[group]
        fired = place[draws < _rate(drive.flatten()[place])].unique()  # several events are one firing
        rows, column = fired // len(self._top_drives), fired % len(self._top_drives)
        features = self._tops[column]
        magnitudes = self._magnitudes(features, generator)
        return _On(rows, features, magnitudes).at((magnitudes > 0).nonzero().squeeze(1))

    def _magnitudes(self, features: Int[Tensor, "*n"], generator: torch.Generator) -> Float[Tensor, "*n"]:
        noise = self._normal(generator, *features.shape)
        return (self.forest.means[features] + self.forest.deviations[features] * noise).relu()

    def _children(self, above: _On, common: Float[Tensor, "rows factors_1"], generator: torch.Generator) -> _On:
        """The children that are on, of the features of one level that are."""
        trees, branching = self.config.trees, self.config.branching
        first = trees + branching * above.features  # children stand in the order of their parents
        children = first[:, None] + torch.arange(branching, device=self.device)
        drive = torch.einsum("nbf,nf->nb", self._drives[children], common[above.rows])
        drive += self._normal(generator, *children.shape)
        magnitudes = self._magnitudes(children, generator)
        on = (drive > 0) & (magnitudes > 0)
        if self.config.exclusive:
            ticket = torch.rand(children.shape, generator=generator, device=self.device)
            winner = ticket.masked_fill(~on, -1).argmax(1, keepdim=True)
            on &= torch.zeros_like(on).scatter_(1, winner, True)
        scaled = magnitudes * (above.magnitudes / self.forest.means[above.features])[:, None]
        parent, child = on.nonzero(as_tuple=True)
        return _On(above.rows[parent], children[parent, child], scaled[parent, child])

    def _activations(self, on: _On, rows: int) -> Float[Tensor, "rows d"]:
        starts = torch.searchsorted(on.rows, torch.arange(rows, device=self.device))
        sums = F.embedding_bag(
            on.features, self.forest.directions, starts, mode="sum", per_sample_weights=on.magnitudes
        )
        return sums + self.forest.bias


def _rate(drive: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """−log(1 − P(drive + η > 0))."""
    return -torch.special.log_ndtr(-drive)


class SyntheticChunks:
    """Chunks of `rows` training samples each, without end: what a stream of batches is made of."""

    def __init__(self, model: SyntheticModel, rows: int) -> None:
        self.model, self.rows = model, rows
        self.keep = RowFilter(None, {})

    @property
    def device(self) -> torch.device:
        """The features'."""
        return self.model.device

    def __len__(self) -> int:
        return sys.maxsize

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        """The samples of this number; nothing is left out."""
        x = torch.empty(self.rows, self.model.config.dimension, device=self.model.device)
        end = 0  # filled in place: no second copy of the chunk ever exists
        entries = training_entries(self.device)
        for samples in self.model.draw(self.rows, TRAIN, seed, epoch, index, entries=entries):
            start, end = end, end + len(samples.x)
            x[start:end] = samples.x
        positions = torch.arange(self.rows, device=self.model.device) + index * self.rows
        return Chunk({SITE: x}, positions, torch.arange(self.rows), RowCounts(read=self.rows))
