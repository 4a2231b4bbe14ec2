"""How features go on from coder to coder: chains of partners, read off the matches of each coder with the next.

link      a latent and its partner in the next coder
chain     a latent, its partner, the partner's partner … while there is one
born      a latent that has no partner in the coder before (newborn), or is of the first coder
merge     a latent that is the partner of several of the coder before
split     a latent that is the partner of several of the next coder
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matryoshka.scores.result import Result


class Flow(NamedTuple):
    """Coders in order, and the partners of their latents; −1 for none."""

    living: list[Int[np.ndarray, " living"]]
    """Of each coder the latents that were matched with those of a neighbour."""
    forward: list[Int[np.ndarray, " d_sae"]]
    """Of each coder but the last: the partner in the next."""
    backward: list[Int[np.ndarray, " d_sae"]]
    """Of each coder but the first: the partner in the one before."""
    pearson: list[Float[np.ndarray, " d_sae"]]
    """Of each coder but the last: the best of the next; NaN where a latent was not matched."""
    lengths: list[Int[np.ndarray, " d_sae"]]
    """Of each coder: links from each latent forward."""

    @classmethod
    def of(cls, sizes: Sequence[int], matches: Sequence[Result]) -> "Flow":
        """`sizes`: d_sae of each coder; `matches`: of each with the next."""
        sides = [result.details["matches"] for result in matches]
        forward = [_partners(side["A"], size) for side, size in zip(sides, sizes[:-1], strict=True)]
        backward = [_partners(side["B"], size) for side, size in zip(sides, sizes[1:], strict=True)]
        numbers = [[np.array(of["latent"], np.int64) for of in side.values()] for side in sides]
        last_of, first_of = [a for a, _ in numbers], [b for _, b in numbers]
        middle = [np.union1d(b, a) for b, a in zip(first_of[:-1], last_of[1:], strict=True)]
        pearson = [np.full(size, np.nan) for size in sizes[:-1]]
        for of_coder, latents, result in zip(pearson, last_of, matches, strict=True):
            [of_pair] = result.of("Pearson of A")
            of_coder[latents] = of_pair.numerator
        lengths = [np.zeros(size, np.int64) for size in sizes]
        for i in range(len(forward) - 1, -1, -1):
            linked = np.flatnonzero(forward[i] >= 0)
            lengths[i][linked] = 1 + lengths[i + 1][forward[i][linked]]
        return cls([last_of[0], *middle, first_of[-1]], forward, backward, pearson, lengths)

    def links(self, i: int) -> tuple[Int[np.ndarray, " links"], Int[np.ndarray, " links"]]:
        """Latents of coder i that have a partner in the next, the weakest link first; and those partners."""
        linked = np.flatnonzero(self.forward[i] >= 0)
        linked = linked[np.argsort(self.pearson[i][linked], kind="stable")]
        return linked, self.forward[i][linked]

    def spans(self) -> list[list[int]]:
        """[first coder, last coder] of chains: how many are born in the one and end in the other."""
        n = len(self.living)
        ends = [i + self.lengths[i][self._born(i)] for i in range(n)]
        return [np.bincount(of, minlength=n).tolist() for of in ends]

    def chains(self) -> dict[str, list[Any]]:
        """A column each of every chain of a link or more: the coder that it is born in, its latents from there on, and
        the Pearson score of its weakest link."""
        columns: dict[str, list[Any]] = {"born": [], "latents": [], "weakest": []}
        for i in range(len(self.forward)):
            born = self._born(i)
            for latent in born[self.forward[i][born] >= 0].tolist():
                latents, strengths = [latent], []
                for after in range(i, i + int(self.lengths[i][latent])):
                    strengths.append(float(self.pearson[after][latents[-1]]))
                    latents.append(int(self.forward[after][latents[-1]]))
                for name, value in zip(columns, (i, latents, min(strengths)), strict=True):
                    columns[name].append(value)
        return columns

    def joints(self, i: int) -> dict[str, int]:
        """Between coder i and the next: merges, and the latents that go into them; splits, and what comes of them."""
        merges, splits = _repeated(self.forward[i]), _repeated(self.backward[i])
        return {"merges": len(merges), "merged": int(merges.sum()), "splits": len(splits), "split": int(splits.sum())}

    def _born(self, i: int) -> Int[np.ndarray, " born"]:
        living = self.living[i]
        return living if i == 0 else living[self.backward[i - 1][living] < 0]


def _partners(side: dict[str, Any], size: int) -> Int[np.ndarray, " d_sae"]:
    partner = np.full(size, -1, np.int64)
    partner[side["latent"]] = [-1 if number is None else number for number in side["partner"]]
    return partner


def _repeated(partner: Int[np.ndarray, " d_sae"]) -> Int[np.ndarray, " several"]:
    """How often each partner occurs that occurs more than once."""
    counts = np.unique(partner[partner >= 0], return_counts=True)[1]
    return counts[counts > 1]
