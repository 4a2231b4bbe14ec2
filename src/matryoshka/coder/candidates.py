"""Select cheaply, rank exactly: how many candidates a product of low precision proposes, and whether they were enough.

    1. a dense product of low precision says of every latent roughly how strong it is
    2. the activation takes somewhat more candidates than it needs
    3. their exact values are inner products of their own, and the cut is made on those

So what is active is decided in the weights' own precision, whatever precision proposed it, as long as no latent was
left out that would have been among them. `shortfall` says how many are to be expected.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka.coder.kernels import Entries, Precision
from matryoshka.coder.latents import Latents

SPREAD = 1.25
"""How much wider errors are taken to be than they are on the whole: those of some rows and latents are."""


class Slack(NamedTuple):
    """By how much the candidates are more than what is wanted."""

    share: float
    """Candidates for each latent that is wanted, where a number of them is."""
    margin: float
    """How far below a threshold candidates begin, where there is one: in the units of training, E‖x‖² = d."""

    def number(self, wanted: int, most: int) -> int:
        """Of candidates for so many latents, of so many that there are."""
        return min(most, math.ceil(self.share * wanted))


EXACT = Slack(1.0, 0.0)
SLACK: dict[Precision, Slack] = {"float32": EXACT, "bfloat16": Slack(1.25, 2**-6), "fp8": Slack(1.5, 2**-2)}
"""An operand is rounded by 2⁻⁹ of itself at most in bfloat16, in FP8 by 2⁻⁴; a pre-activation, the sum of many, by some
0.003 and 0.04 of what ‖x‖‖w‖/√d is, one deviation."""


class Candidates(NamedTuple):
    """What was proposed."""

    rough: Latents
    """The entries with their values of low precision."""
    places: Entries | None
    """Which of them were selected by their exact values; None: all."""

    @property
    def of_selected(self) -> Float[Tensor, " selected"]:
        """The rough values of those that were selected."""
        values = self.rough.values.float()
        return values if self.places is None else values[self.places]


def shortfall(
    exact: Float[Tensor, "group selected"],
    rough: Float[Tensor, "group selected"],
    cut: Float[Tensor, "group _"],
    gap: Float[Tensor, "group 1"],
    above: Float[Tensor, "group candidates"],
) -> Float[Tensor, ""]:
    """Latents that would have been selected by their exact values but were no candidates, as an expected share of those
    selected (their `exact` values reach the `cut`). A group is what is cut together.

    Candidates begin by `gap` below the cut, and have rough values by so much `above` that: so dense as the first of
    them are, at least nearly, the latents below. Each is mistaken by an error that is normal, whose deviation is
    measured (and widened by SPREAD) where both values are known: on the selected ones, errors of large values (rounding
    is relative) brought down to the height of the cut. At a density of 1 a deviation, those that are mistaken by more
    than what they lack are φ(g) − g (1 − Φ(g)), g deviations being the gap.
    """
    selected = (exact >= cut) & (exact > 0)
    number = selected.sum(1, keepdim=True)
    error = torch.where(selected, (exact - rough) * cut / exact, 0).double()
    deviation = SPREAD * (error.square().sum(1, keepdim=True) / number.clamp(min=1)).sqrt()
    deviation = deviation.clamp(min=torch.finfo(exact.dtype).tiny)
    width = torch.maximum(gap, deviation)
    density = ((above >= 0) & (above < width)).sum(1, keepdim=True) / width * deviation
    g = gap / deviation
    beyond = (-g.square() / 2).exp() / math.sqrt(2 * math.pi) - g * torch.erfc(g / math.sqrt(2)) / 2
    missed = (density * beyond.clamp(min=0)).clamp(max=number)
    return (missed.sum() / number.sum().clamp(min=1)).to(exact.dtype)
