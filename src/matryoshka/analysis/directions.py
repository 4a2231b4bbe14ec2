"""Which decoder rows of two coders point alike, where both write into one space.

    cosine        of each row of one coder with the most alike row of the other
    one to one    the pairing of the rows, each taken once, with the largest sum of cosines (Hungarian method)
    geometry      whether paired rows stand alike to the other pairs, each coder's in its own space

Sites that are added to the residual stream of one model, or are the stream itself, share its basis; so do coders that
write the same sites. Elsewhere numbers of equal length mean different things, and no cosine is taken but within one
coder.

What chance would give is the same with the second coder's dimensions shuffled, all rows in the same way: its rows stand
to each other as before.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from matryoshka.study.hooked import HookedCoder

ROWS = 512
"""Rows multiplied at once."""
MOST_ASSIGNED = 16_384
"""Rows of either coder up to which they are paired one to one: the method holds all pairs in float64, 2.1 GB."""


class Nearest(NamedTuple):
    """Of each row the most alike row of the other coder."""

    cosine: Float[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]


class Paired(NamedTuple):
    """Rows paired one to one; as many as the first coder has."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    cosine: Float[np.ndarray, " pairs"]


def no_common_basis(first: HookedCoder, second: HookedCoder) -> str | None:
    """Why decoder rows of these two coders have no cosine; None where they have."""
    a, b = first.wiring.writes, second.wiring.writes
    if a == b or (len(a) == len(b) == 1 and a[0].in_residual and b[0].in_residual):
        return None
    return f"they write {' + '.join(map(str, a))} and {' + '.join(map(str, b))}, which share no basis"


def nearest(
    first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], costs: Float[np.ndarray, "n m"] | None = None
) -> tuple[Nearest, Nearest]:
    """The most alike rows of the second for each of the first, and of the first for each of the second. `costs` is
    filled with minus the cosines of all pairs, for `one_to_one`."""
    of_first = Nearest(np.zeros(len(first)), np.full(len(first), -1))
    of_second = Nearest(np.full(len(second), -2.0), np.full(len(second), -1))
    a, b = (torch.nn.functional.normalize(rows.cpu().float(), dim=1) for rows in (first, second))
    for start in range(0, len(a), ROWS):
        cosines = (a[start : start + ROWS] @ b.T).clamp_(-1, 1)
        own = slice(start, start + len(cosines))
        of_first.cosine[own], of_first.other[own] = _largest(cosines, 1)
        cosine, other = _largest(cosines, 0)
        better = cosine > of_second.cosine
        of_second.cosine[better], of_second.other[better] = cosine[better], other[better] + start
        if costs is not None:
            np.negative(cosines.numpy(), out=costs[own])
    return of_first, of_second


def pair_costs(first: int, second: int) -> Float[np.ndarray, "n m"] | None:
    """Room for the costs of all pairs of so many rows, the first not more than the second (the method would copy them
    to turn them round); None of more than MOST_ASSIGNED."""
    if first > second:
        raise ValueError(f"{first} rows are to be paired with {second}: the fewer ones come first")
    return None if second > MOST_ASSIGNED else np.empty((first, second))


def one_to_one(costs: Float[np.ndarray, "n m"]) -> Paired:
    """The pairing with the least sum of costs."""
    first, second = linear_sum_assignment(costs)
    return Paired(first, second, -costs[first, second])


def composed(pairings: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """Pairings of coders one after the other as one, from the first coder to the last (SAE Match, arXiv:2410.07656):
    latent → latent, of those that none of them leaves out."""
    first, *others = pairings
    latents = dict(first)
    for pairing in others:
        latents = {own: pairing[partner] for own, partner in latents.items() if partner in pairing}
    return latents


def shuffled_dimensions(rows: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n d"]:
    """The rows with their dimensions in another order, the same of all."""
    return rows[:, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))]


def distinct(rows: Float[Tensor, "n d"], cut: float) -> Int[np.ndarray, " distinct"]:
    """The rows that have a cosine of `cut` with no earlier one."""
    units = torch.nn.functional.normalize(rows.cpu().float(), dim=1)
    first = np.ones(len(units), bool)
    for start in range(0, len(units), ROWS):
        cosines = units[start : start + ROWS] @ units[: start + ROWS].T
        first[start : start + len(cosines)] = ~(cosines.tril(start - 1) >= cut).any(1).numpy()
    return np.flatnonzero(first)


class Geometry(NamedTuple):
    """How alike paired rows of two coders stand to the other pairs, each coder's in its own space."""

    agreement: Float[np.ndarray, " pairs"]
    """Of each pair the Pearson correlation of its cosines with the rows of all other pairs, in one coder and in the
    other."""
    by_chance: float
    """Its mean where the rows are paired at random."""


def geometry(first: Float[Tensor, "n d"], second: Float[Tensor, "n e"], seed: int) -> Geometry | None:
    """Of rows that are paired in this order; None of fewer than four pairs. Representational similarity of paired
    decoder rows after Lan et al. 2024 (arXiv:2410.06981)."""
    if (n := len(first)) < 4:
        return None
    others = ~np.eye(n, dtype=bool)
    units = [torch.nn.functional.normalize(rows.cpu().double(), dim=1).numpy() for rows in (first, second)]
    a, b = (rows @ rows.T for rows in units)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = b[order][:, order]
    agreement, null = (_correlations(a[others].reshape(n, -1), of[others].reshape(n, -1)) for of in (b, shuffled))
    return Geometry(agreement, float(null.mean()))


def _correlations(a: Float[np.ndarray, "n m"], b: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """Of each row of one with that of the other; 0 where one has the same value everywhere."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(scale > 0, scale, np.inf)


def _largest(cosines: Float[Tensor, "rows m"], dim: int) -> tuple[np.ndarray, np.ndarray]:
    largest = cosines.max(dim)
    return largest.values.double().numpy(), largest.indices.numpy()
