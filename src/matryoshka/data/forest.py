"""Features that are known: their directions, how often and how strongly they are on, and the forest that they stand in.

As SynthSAEBench has them (arXiv:2602.14687), of the configuration's section alone:

    directions     random unit vectors; some steps of Adam on Σ_{i≠j} ⟨d_i, d_j⟩² + N Σ_i (‖d_i‖² − 1)², unit norm again
    frequency      p_i by Zipf's law 1/i^exponent, moved and stretched so that it goes from p_max to p_min
    propensity     p_i where nothing stands in the way. A child that is on only where its parent is, and that competes
                   with its siblings, has to have a larger one: p_i/p_parent · (1 + Σ_siblings p/p_parent), at most 1
    loadings       on factors that all features share, N(0, correlation²); a feature of them alone has variance 0.99
    magnitudes     mean by number, linear; standard deviation |N(…)| of each feature
    forest         level by level: roots 0 … trees − 1, then the children of 0, of 1 …; the rest stand alone

The loss above needs no N × N product: Σ_ij ⟨d_i, d_j⟩² = ‖DᵀD‖², which is d × d. Directions are made on the CPU and
kept in the cache, so that a run has the same ones wherever it is measured.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.stream import seeded
from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir, write_bytes
from matryoshka.progress import progress_bar

LARGEST_COMMON = 0.99
"""Of a feature's variance that may come from the factors."""
DIRECTIONS, BIAS, LOADINGS, DEVIATIONS = range(4)
"""What is drawn, each from a seed of its own."""


class Forest(NamedTuple):
    """All that is known of N features; tensors on one device."""

    directions: Float[Tensor, "features d"]
    """Of unit norm."""
    bias: Float[Tensor, " d"]
    frequencies: Float[Tensor, " features"]
    """How often each is meant to be on."""
    propensities: Float[Tensor, " features"]
    """How often each would be on if parents and siblings let it."""
    loadings: Float[Tensor, "features factors"]
    means: Float[Tensor, " features"]
    """Of the magnitude where it is on and, of a child, its parent at its own mean."""
    deviations: Float[Tensor, " features"]
    parents: Int[Tensor, " features"]
    """The number of each one's parent; −1 of roots and of those that stand alone."""

    @classmethod
    def grow(cls, config: SyntheticConfig) -> Self:
        """On the CPU. The directions come from the cache if they have been made before."""
        count, cpu = config.features, torch.device("cpu")
        frequencies, parents = _zipf(config), _parents(config)
        bias = torch.randn(config.dimension, generator=seeded(cpu, config.seed, BIAS))
        loadings = torch.randn(count, config.factors, generator=seeded(cpu, config.seed, LOADINGS)) * config.correlation
        common = loadings.square().sum(1, keepdim=True)
        spreads = torch.randn(count, generator=seeded(cpu, config.seed, DEVIATIONS)) * config.deviation_spread
        return cls(
            directions=_directions(config),
            bias=bias / bias.norm() * config.bias,
            frequencies=frequencies.float(),
            propensities=_propensities(frequencies, parents, config).float(),
            loadings=loadings * (LARGEST_COMMON / common.clamp(min=LARGEST_COMMON)).sqrt(),
            means=torch.linspace(config.magnitude_first, config.magnitude_last, count),
            deviations=(config.deviation_mean + spreads).abs(),
            parents=parents,
        )

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(*(values.to(device) for values in self))


def _zipf(config: SyntheticConfig) -> Float[Tensor, " features"]:
    """p_max … p_min, float64; of a single feature p_max."""
    law = torch.arange(1, config.features + 1, dtype=torch.float64) ** -config.exponent
    share = (law - law[-1]) / (law[0] - law[-1]) if config.features > 1 else torch.ones_like(law)
    return config.p_min + (config.p_max - config.p_min) * share


def _parents(config: SyntheticConfig) -> Int[Tensor, " features"]:
    parents = torch.full((config.features,), -1)
    inside = sum(config.levels)
    if inside:
        children = torch.arange(config.trees, inside)
        parents[children] = (children - config.trees) // config.branching
    return parents


def _propensities(
    frequencies: Float[Tensor, " features"], parents: Int[Tensor, " features"], config: SyntheticConfig
) -> Float[Tensor, " features"]:
    children = (parents >= 0).nonzero().squeeze(1)
    own, of_parent = frequencies[children], frequencies[parents[children]]
    share = own / of_parent
    if config.exclusive:
        siblings = torch.zeros_like(frequencies).index_add_(0, parents[children], own)[parents[children]] - own
        share = share * (1 + siblings / of_parent)
    return frequencies.index_copy(0, children, share.clamp(max=1))


def _directions(config: SyntheticConfig) -> Float[Tensor, "features d"]:
    generator = seeded(torch.device("cpu"), config.seed, DIRECTIONS)
    rows = _unit(torch.randn(config.features, config.dimension, generator=generator))
    if config.orthogonal_steps == 0:
        return rows
    file = cache_dir() / "synthetic" / f"{config.hash}.safetensors"
    if file.is_file():
        try:
            return load_file(file)["directions"]
        except (SafetensorError, KeyError) as error:
            raise MatryoshkaError(f"{file}: damaged ({error}); delete it to have it made anew") from None
    rows = _orthogonalised(rows, config.orthogonal_steps, config.orthogonal_lr)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, save({"directions": rows}))
    return rows


def _unit(rows: Float[Tensor, "features d"]) -> Float[Tensor, "features d"]:
    return rows / rows.norm(dim=1, keepdim=True)


def _orthogonalised(rows: Float[Tensor, "features d"], steps: int, lr: float) -> Float[Tensor, "features d"]:
    """After `steps` of Adam on the module's loss, of unit norm again."""
    rows = rows.clone()
    optimiser = torch.optim.Adam([rows], lr=lr)
    with progress_bar(f"making {len(rows):,} directions nearly orthogonal") as update:
        for step in range(steps):
            norms = rows.square().sum(1, keepdim=True)
            # ∇ ‖DᵀD‖², less what the diagonal adds to it, and what holds the norms
            rows.grad = 4 * (rows @ (rows.T @ rows)) + (4 * (len(rows) * (norms - 1) - norms)) * rows
            optimiser.step()
            update(step + 1, steps)
    return _unit(rows)
